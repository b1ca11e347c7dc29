//! Steps that reboot the guest.

use crate::project::{LIGHT, Project, manifest};

#[test]
fn a_step_may_reboot_and_the_next_one_runs_in_the_new_boot() {
    let profile = format!(
        "{LIGHT}\n[[step]]\nshell = [\"cp /proc/sys/kernel/random/boot_id /home/debian/before\", \"sudo reboot\"]\n\
         [[step]]\nshell = \"! cmp -s /home/debian/before /proc/sys/kernel/random/boot_id && echo another boot\"\n\
         [[output]]\nformat = \"qcow2\"\n"
    );
    let project = Project::with_profile("reboot", &profile);
    let output = project.kvmbake("run p.toml").expect(0);
    assert!(output.stderr.contains("| another boot"), "{}", output.stderr);
    assert!(output.stderr.contains("the guest rebooted"), "{}", output.stderr);
    let folder = project.finished();
    let steps = &manifest(&project, &folder)["steps"];
    assert_eq!((&steps[0]["rebooted"], &steps[1]["rebooted"]), (&true.into(), &false.into()));
    let boots = project.judge(&format!("grep -c 'Linux version' {folder}/serial.log"));
    assert_eq!(boots.trim(), "2");
}
