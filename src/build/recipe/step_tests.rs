//! What changes the layer of a step that moves files or runs on the host, and what does not.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;
use crate::profile::{Given, Profile, Source};

struct Project {
    folder: tempfile::TempDir,
    cache: Cache,
}

impl Project {
    fn new() -> Project {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open_at(&folder.path().join("cache")).unwrap();
        Project { folder, cache }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn recipe_with(&self, step: &str, vars: &str) -> Recipe {
        let text = format!(
            "[image]\nname = \"a\"\nsource = \"b\"\n[vars]\n{vars}\n[[step]]\n{step}\n[[output]]\nformat = \"raw\"\n"
        );
        let mut given = Given::default();
        given.environment = |name| (name == "TOKEN").then(|| "hunter2-hunter2".to_string());
        let profile = Profile::parse_with(Source::new(self.path("a.toml"), text), &given).unwrap();
        let never = AtomicBool::new(false);
        recipe(&profile.steps[0], &profile.secrets, &self.cache, &never).unwrap()
    }

    fn recipe(&self, step: &str) -> Recipe {
        self.recipe_with(step, "")
    }
}

#[test]
fn all_that_reaches_the_guest_by_an_upload_is_in_its_recipe() {
    let project = Project::new();
    project.write("app/a", "one");
    project.write("app/b/c", "two");
    symlink("a", project.path("app/link")).unwrap();
    let step = "upload = { source = \"app\", to = \"/srv\" }";
    let mut seen = vec![project.recipe(step)];
    assert!(seen[0].same(&project.recipe(step)));
    let mut changed = |recipe: Recipe| {
        assert!(seen.iter().all(|before| !before.same(&recipe)), "{recipe:?}");
        seen.push(recipe);
    };
    changed(project.recipe("upload = { source = \"app/\", to = \"/srv\" }"));
    changed(project.recipe("upload = { source = \"app\", to = \"/opt\" }"));
    changed(project.recipe("upload = { source = \"app\", to = \"/srv\", mode = \"0600\" }"));
    changed(project.recipe("upload = { source = \"app\", to = \"/srv\", owner = \"root\" }"));
    changed(project.recipe("upload = { source = \"app\", to = \"/srv\", sudo = true }"));
    project.write("app/b/c", "three");
    changed(project.recipe(step));
    fs::set_permissions(project.path("app/a"), fs::Permissions::from_mode(0o755)).unwrap();
    changed(project.recipe(step));
    fs::remove_file(project.path("app/link")).unwrap();
    symlink("b", project.path("app/link")).unwrap();
    changed(project.recipe(step));
    fs::create_dir(project.path("app/empty")).unwrap();
    changed(project.recipe(step));
    fs::rename(project.path("app/a"), project.path("app/z")).unwrap();
    changed(project.recipe(step));
}

#[test]
fn a_template_counts_by_what_it_becomes_and_keeps_its_secrets() {
    let project = Project::new();
    project.write("a.in", "{{ port }}");
    let step = "upload = { source = \"a.in\", to = \"/a\", template = true }";
    let recipe = |vars| project.recipe_with(step, vars);
    assert!(!recipe("port = 80").same(&recipe("port = 81")));
    assert!(recipe("port = 80").same(&recipe("port = 80\nother = 1")));
    project.write("a.in", "80");
    assert!(recipe("port = 80").same(&project.recipe(step)));
    project.write("a.in", "{{ token }}");
    let secret = recipe("token = { secret = true, env = \"TOKEN\" }");
    let record = serde_json::to_string(&secret).unwrap();
    assert!(!record.contains("hunter2"), "{record}");
}

#[test]
fn where_a_download_goes_is_no_business_of_its_layer() {
    let project = Project::new();
    let recipe = |to, more| {
        project.recipe(&format!("download = {{ source = \"/x/\", to = \"{to}\"{more} }}"))
    };
    assert!(recipe("a/", "").same(&recipe("/b/", ", limit = \"1M\"")));
    assert!(!recipe("a/", "").same(&recipe("a/", ", sudo = true")));
}

#[test]
fn playbooks_follow_from_their_roles_and_host_commands_from_their_inputs() {
    let project = Project::new();
    project.write("play/site.yml", "- hosts: all");
    project.write("play/roles/web/tasks/main.yml", "[]");
    project.write("play/notes.txt", "one");
    project.write("data", "one");
    let steps = [
        "ansible = { playbook = \"play/site.yml\" }",
        "ansible_local = { playbook = \"play/site.yml\" }",
    ];
    let before = steps.map(|step| project.recipe(step));
    assert!(!before[0].same(&before[1]));
    project.write("play/notes.txt", "two");
    assert!(steps.map(|step| project.recipe(step)).iter().zip(&before).all(|(a, b)| a.same(b)));
    project.write("play/roles/web/tasks/main.yml", "[ ]");
    assert!(steps.map(|step| project.recipe(step)).iter().zip(&before).all(|(a, b)| !a.same(b)));
    let secret = "token = { secret = true, env = \"TOKEN\" }";
    let step = "ansible = { playbook = \"play/site.yml\", extra_vars = { a = \"{{ token }}\" }, env = { B = \"{{ token }}\" } }";
    let record = serde_json::to_string(&project.recipe_with(step, secret)).unwrap();
    assert!(!record.contains("hunter2"), "{record}");
    let host = "host = { inline = \"true\", inputs = [\"data\"] }";
    let before = project.recipe(host);
    assert!(before.same(&project.recipe(host)));
    assert!(!before.same(&project.recipe(&host.replace("true", "false"))));
    project.write("data", "two");
    assert!(!before.same(&project.recipe(host)));
}
