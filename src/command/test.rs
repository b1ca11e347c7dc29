//! `kvmbake test`

use std::path::PathBuf;
use std::sync::Arc;

use kvmbake_convert::{Format, OpenOptions};

use super::{ProfileArgs, image, print};
use crate::build::{Build, Cancel, Options, Plan, for_test, newest};
use crate::error::Error;
use crate::profile::Profile;
use crate::report::Report;
use crate::secret::Secrets;

/// Boots a finished image and asks it what the profile's [[test]] say
///
/// The image is never written: the guest works on an overlay that is thrown away. It gets a seed with a key for the
/// login and nothing else of the profile's [seed].
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
    /// The image; that of the newest build in OUT when not given
    #[arg(value_name = "IMAGE")]
    image: Option<PathBuf>,
    /// The image's format; probed when absent, unless it is a build's
    #[arg(short = 'f', long = "format", value_name = "FORMAT", requires = "image")]
    format: Option<Format>,
    /// Folder with finished builds
    #[arg(short, long, value_name = "OUT", default_value = "out")]
    output: PathBuf,
}

/// Runs the tests.
///
/// # Errors
/// The image does not come up, or a test fails.
pub fn run(args: &Args, report: Arc<dyn Report>, secrets: &Secrets) -> Result<(), Error> {
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    let find = |profile: &Profile| {
        if profile.tests.is_empty() {
            return Err(Error::input("The profile has no [[test]]"));
        }
        let (path, format) = match &args.image {
            Some(path) => (path.clone(), args.format),
            None => {
                let (path, format) = newest(profile, &args.output).ok_or_else(|| {
                    let name = &profile.image.name;
                    let output = args.output.display();
                    Error::input(format!("There is no finished build of {name} in {output}"))
                        .hint("`kvmbake run` makes one; or name an image")
                })?;
                (path, Some(format))
            }
        };
        let options = OpenOptions { format, ..OpenOptions::default() };
        let disk = image::open(&path, &options, report.as_ref())?;
        Ok((path, disk))
    };
    let given = args.profile.given(secrets)?;
    let mut plan = Plan::load_for(&find, &args.profile.profile, &given, &report, &cancel)?;
    for_test(&mut plan);
    let plan = Arc::new(plan);
    let options = Options { no_cache: true, ..Options::default() };
    let build = Build::new(Arc::clone(&plan), &options, Arc::clone(&report), cancel)?;
    print(&format!("{}\n", plan.source.path.display()))?;
    let failed = super::block_on(async {
        let (mut guest, place) = build.guest_of_image().await?;
        let mut failed = 0;
        for test in &plan.profile.tests {
            let verdict = guest.test(test).await?;
            let line = match &verdict.reason {
                None => format!("ok      {}  {:.1} s\n", test.title, verdict.seconds),
                Some(reason) => {
                    failed += 1;
                    let text = crate::report::printable(reason);
                    format!("FAILED  {}: {text}\n", test.title)
                }
            };
            print(&secrets.redact(&line))?;
        }
        drop(guest);
        drop(place);
        Ok(failed)
    })?;
    let count = plan.profile.tests.len();
    match failed {
        0 => print(&format!("{count} of {count} tests passed\n")),
        failed => Err(Error::guest(format!("{failed} of {count} tests failed"))),
    }
}
