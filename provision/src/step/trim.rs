//! The trim step: unused space goes back to the host, so that images of the disk do not hold what was deleted.

use super::ScriptStep;

/// Returns the step.
pub fn trim() -> ScriptStep {
    ScriptStep::as_root("trim", include_str!("trim.sh"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::session::sshd::scripts;

    #[test]
    fn each_disk_is_trimmed_once_and_filled_where_it_cannot_be() {
        for (shell, said) in [
            ("/bin/dash", "echo \"$2: 1.2 GiB (1288490188 bytes) trimmed\""),
            ("/bin/bash", "echo \"$2: 1.2 GiB (1288490188 bytes) trimmed on /dev/vda1\""),
            ("/bin/busybox sh", "echo \"$2: 1288490188 bytes trimmed\""),
        ] {
            let folder = tempfile::tempdir().expect("folder");
            let old = folder.path().join("o ld");
            fs::create_dir(&old).expect("folder");
            let full = folder.path().join("full");
            fs::create_dir(&full).expect("folder");
            let octal = old.display().to_string().replace(' ', "\\040");
            let mounts = folder.path().join("mounts");
            let table = format!(
                "proc /proc proc rw 0 0\n/dev/vda1 / ext4 rw,relatime 0 0\n/dev/vda1 /again ext4 rw 0 0\n\
                 /dev/vda2 /ro xfs ro,noatime 0 0\ntmpfs /tmp tmpfs rw 0 0\n\
                 /dev/vdb1 {octal} ext2 rw 0 0\n/dev/vdb2 {} vfat rw 0 0\n",
                full.display()
            );
            fs::write(&mounts, table).expect("write");
            let trims = format!("[ \"$2\" = / ] && {said}");
            // Free: 100 MiB, of which 64 stay; and less than what stays.
            let free =
                "printf 'a b c d\\nx 1 1 '; case $2 in *full) echo 60000 ;; *) echo 102400 ;; esac";
            let log = folder.path().join("log");
            let fills = format!("echo \"$*\" >>{}; : >\"${{2#of=}}\"", log.display());
            let tools = scripts(&[("fstrim", &trims), ("df", free), ("dd", &fills), ("sync", ":")]);
            let script = trim().script.replace("/proc/mounts", &mounts.display().to_string());
            let words: Vec<&str> = shell.split(' ').collect();
            let output = std::process::Command::new(words[0])
                .args(&words[1..])
                .args(["-c", &script])
                .env("PATH", format!("{}:/usr/bin:/bin", tools.path().display()))
                .output()
                .expect("shell");
            assert!(output.status.success(), "{output:?}");
            let told = format!(
                "/: 1288490188 bytes freed\n{}: {} bytes freed, by zeroes\n{}: too little free space to fill\n",
                old.display(),
                36 << 20,
                full.display()
            );
            assert_eq!(String::from_utf8_lossy(&output.stdout), told, "{shell}");
            let filled = fs::read_to_string(&log).expect("log");
            assert!(filled.trim_end().ends_with("bs=1048576 count=36"), "{filled}");
            assert_eq!(fs::read_dir(&old).expect("folder").count(), 0, "the zeroes are removed");
        }
    }
}
