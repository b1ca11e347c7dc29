//! What a matrix makes of a profile.

use crate::profile::{Fault, Given, Profile, Source};

const PROFILE: &str = r#"
[matrix]
distro = ["debian", "ubuntu"]
size = ["4G", "2G", "8G"]

[vars]
label = "{{ matrix.distro }} image"

[image]
name = "web"
source = "{{ matrix.distro }}.qcow2"
size = "{{ matrix.size }}"

[[step]]
name = "for all"
shell = "echo {{ label }}"

[[step]]
name = "for one"
only = ["distro=debian,size=4G", "ubuntu-8G"]
shell = "true"

[[step]]
name = "not large"
except = "size=8G"
when = "matrix.distro == 'debian'"
shell = "true"

[[output]]
format = "raw"
"#;

fn cells_of(text: &str, asked: &[&str]) -> Result<Vec<Profile>, Vec<Fault>> {
    let cells = asked.iter().map(|text| (*text).to_string()).collect();
    let given = Given { cells, ..Given::default() };
    Profile::cells(Source::new("/profiles/web.toml", text), &given)
}

fn names(profiles: &[Profile]) -> Vec<&str> {
    profiles.iter().map(|profile| profile.image.name.as_str()).collect()
}

#[track_caller]
fn refused(text: &str, asked: &[&str], line: usize, part: &str) {
    let faults = cells_of(text, asked).expect_err(part);
    assert_eq!(faults.len(), 1, "each fault is told once: {faults:#?}");
    let told = format!("{}; {:?}", faults[0].message, faults[0].hint);
    assert!(told.contains(part), "{told}");
    assert_eq!(faults[0].place.line, line, "{told}");
}

#[test]
fn each_combination_is_a_cell_with_its_values_as_variables() {
    let cells = cells_of(PROFILE, &[]).unwrap();
    let expected = ["debian-4G", "debian-2G", "debian-8G", "ubuntu-4G", "ubuntu-2G", "ubuntu-8G"];
    assert_eq!(names(&cells), expected.map(|cell| format!("web-{cell}")));
    assert_eq!(cells[3].image.source.value.to_string(), "/profiles/ubuntu.qcow2");
    assert_eq!(cells[3].image.size.as_ref().unwrap().value, 4 << 30);
    assert_eq!(cells[3].outputs[0].file, "web-ubuntu-4G.raw");
    assert_eq!(cells[3].steps[0].shell().title(&cells[3].secrets), "echo ubuntu image");
    assert_eq!(cells[3].identity().to_str(), Some("/profiles/web.toml#ubuntu-4G"));
}

#[test]
fn what_file_names_may_have_stays_in_the_names_of_cells() {
    let hyphened =
        PROFILE.replace("\"debian\"", "\"debian-12\"").replace("=debian,", "=debian-12,");
    let profiles = cells_of(&hyphened, &["debian-12-4G"]).unwrap();
    assert_eq!(names(&profiles), ["web-debian-12-4G"]);
}

#[test]
fn a_name_that_tells_the_cells_apart_stays_as_it_is() {
    let text = PROFILE.replace("\"web\"", "\"{{ matrix.size }}.{{ matrix.distro }}\"");
    let cells = cells_of(&text, &[]).unwrap();
    assert_eq!(names(&cells)[0], "4G.debian");
    // By the distribution alone three cells would be one.
    let text = PROFILE.replace("\"web\"", "\"{{ matrix.distro }}\"");
    assert_eq!(names(&cells_of(&text, &[]).unwrap())[0], "debian-debian-4G");
}

#[test]
fn steps_are_done_where_only_except_and_when_say() {
    let cells = cells_of(PROFILE, &[]).unwrap();
    let steps = |index: usize| -> Vec<&str> {
        cells[index].steps.iter().map(|step| step.title.as_str()).collect()
    };
    assert_eq!(steps(0), ["for all", "for one", "not large"]);
    assert_eq!(steps(1), ["for all", "not large"]);
    assert_eq!(steps(2), ["for all"]);
    assert_eq!(steps(3), ["for all"]);
    assert_eq!(steps(5), ["for all", "for one"]);
    let left_out = |title: &str, key| (title.to_string(), key);
    assert_eq!(cells[2].left_out, [left_out("for one", "only"), left_out("not large", "except")]);
    assert_eq!(cells[5].left_out, [left_out("not large", "when")]);
    let without = PROFILE.replace("[matrix]", "[vars.x]").replace("{{ matrix.", "{{ env.");
    let only = "[[step]]\nonly = \"web\"\nshell = \"true\"\n[[output]]";
    let single = "[image]\nname = \"web\"\nsource = \"a\"\n[[output]]\nformat = \"raw\"\n";
    let single = single.replace("[[output]]", only);
    assert_eq!(cells_of(&single, &[]).unwrap()[0].steps.len(), 1, "an image's own name");
    assert!(cells_of(&without, &[]).is_err());
}

#[test]
fn excluded_combinations_are_no_cells() {
    let exclude = "exclude = [{ distro = \"debian\", size = [\"2G\", \"8G\"] }, { size = \"4G\" }]";
    let text = PROFILE.replace("size = [", &format!("{exclude}\nsize = ["));
    let text = text.replace("size=4G\"", "size=4G\", \"ubuntu-8G\"");
    let text = text.replace("\"distro=debian,size=4G\", ", "");
    assert_eq!(names(&cells_of(&text, &[]).unwrap()), ["web-ubuntu-2G", "web-ubuntu-8G"]);
}

#[test]
fn cells_are_chosen_by_name_by_values_and_by_their_images() {
    let chosen = |asked: &[&str]| {
        let cells = cells_of(PROFILE, asked).unwrap();
        names(&cells).iter().map(|name| name.trim_start_matches("web-").to_string()).collect()
    };
    let chosen: [Vec<String>; 4] = [
        chosen(&["ubuntu-2G"]),
        chosen(&["distro=ubuntu"]),
        chosen(&["size=2G,distro=debian", "web-ubuntu-8G"]),
        chosen(&["size=2G", "debian-2G"]),
    ];
    assert_eq!(chosen[0], ["ubuntu-2G"]);
    assert_eq!(chosen[1], ["ubuntu-4G", "ubuntu-2G", "ubuntu-8G"]);
    assert_eq!(chosen[2], ["debian-2G", "ubuntu-8G"]);
    assert_eq!(chosen[3], ["debian-2G", "ubuntu-2G"]);
    refused(PROFILE, &["ubuntu-3G"], 2, "Did you mean `ubuntu-2G`?");
    refused(PROFILE, &["distro=arch"], 2, "Cells are debian-4G, debian-2G");
    let single = "[image]\nname = \"a\"\nsource = \"b\"\n[[output]]\nformat = \"raw\"\n";
    refused(single, &["x"], 1, "has no [matrix]");
}

#[test]
fn a_command_for_one_image_wants_one_cell() {
    let source = || Source::new("/profiles/web.toml", PROFILE);
    let faults = Profile::parse_with(source(), &Given::default()).unwrap_err();
    assert!(faults[0].message.contains("6 cells"), "{faults:?}");
    assert!(faults[0].hint.as_ref().unwrap().contains("--cell: debian-4G, "), "{faults:?}");
    let given = Given { cells: vec!["debian-2G".into()], ..Given::default() };
    assert_eq!(Profile::parse_with(source(), &given).unwrap().image.name, "web-debian-2G");
}

#[test]
fn cells_that_boot_the_same_are_built_at_the_smallest_of_their_sizes() {
    let build_sizes = |text: &str, asked: &[&str]| -> Vec<Option<u64>> {
        let cells = cells_of(text, asked).unwrap();
        let gib =
            |profile: &Profile| profile.image.build_size.as_ref().map(|size| size.value >> 30);
        cells.iter().map(gib).collect()
    };
    assert_eq!(build_sizes(PROFILE, &[]), [Some(2); 6]);
    // Which cells are asked for is no matter: they have the same layers.
    assert_eq!(build_sizes(PROFILE, &["debian-8G"]), [Some(2)]);
    let own = PROFILE.replace("size = \"{{", "build_size = \"1G\"\nsize = \"{{");
    assert_eq!(build_sizes(&own, &[]), [Some(1); 6]);
    // What the guest's boot sees of the size makes each cell a build of its own.
    let seen =
        format!("[seed]\nkind = \"nocloud\"\nhostname = \"{{{{ matrix.size }}}}\"\n{PROFILE}");
    assert_eq!(build_sizes(&seen, &[]), [None; 6]);
    let by_distro = PROFILE.replace("[\"4G\", \"2G\", \"8G\"]", "[\"4G\"]");
    let by_distro = by_distro.replace("\"distro=debian,size=4G\", \"ubuntu-8G\"", "\"debian-4G\"");
    let by_distro = by_distro.replace("except = \"size=8G\"\n", "");
    assert_eq!(build_sizes(&by_distro, &[]), [None; 2], "one size is shared by nobody");
}

#[test]
fn a_matrix_that_cannot_be_is_refused_at_its_place() {
    for (from, to, line, part) in [
        ("distro = [\"debian\", \"ubuntu\"]", "distro = \"debian\"", 3, "must be a list of texts"),
        ("distro = [\"debian\", \"ubuntu\"]", "distro = [[1]]", 3, "not array"),
        ("distro = [\"debian\", \"ubuntu\"]", "distro = []", 3, "not an empty one"),
        ("\"ubuntu\"]", "\"debian\"]", 3, "there twice"),
        ("\"ubuntu\"]", "\"{{ label }}\"]", 3, "has a variable"),
        ("\"ubuntu\"]", "\"u\", \"deb ian\", \"deb/ian\"]", 2, "Two cells are called `deb_ian-2G`"),
        ("\"ubuntu\"]", "\"u\"]\n\"a.b\" = [1]", 4, "is no name"),
        ("\"ubuntu\"]", "\"u\"]\nexclude = 1", 4, "must be a list of tables"),
        ("\"ubuntu\"]", "\"u\"]\nexclude = [{ disto = \"u\" }]", 4, "Did you mean `distro`?"),
        ("\"ubuntu\"]", "\"u\"]\nexclude = [{ distro = \"x\" }]", 4, "has no value `x`"),
        (
            "\"ubuntu\"]",
            "\"u\"]\nexclude = [{ distro = [\"u\", \"debian\"] }]",
            4,
            "leaves no cell",
        ),
        (
            "{{ matrix.distro }}.qcow2",
            "{{ matrix.disto }}.qcow2",
            11,
            "Did you mean `matrix.distro`?",
        ),
        ("\"ubuntu-8G\"]", "\"ubuntu-9G\"]", 20, "Did you mean `ubuntu-2G`?"),
    ] {
        assert!(PROFILE.contains(from));
        refused(&PROFILE.replacen(from, to, 1), &[], line, part);
    }
    let many = format!("a = {:?}\nb = {:?}\ndistro", [0; 17].map(|_| 0), 0);
    assert!(cells_of(&PROFILE.replacen("distro", &many, 1), &[]).is_err());
    let hundred: Vec<usize> = (0..100).collect();
    let many = format!("many = {hundred:?}\ndistro");
    refused(&PROFILE.replacen("distro", &many, 1), &[], 2, "more than 256 cells");
}
