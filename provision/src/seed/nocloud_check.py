"""Reads a seed folder with cloud-init's own code and prints what it understood, as JSON. For the tests."""
import json
import sys

from cloudinit import helpers, util
from cloudinit.distros import debian
from cloudinit.sources import DataSourceNoCloud

root = sys.argv[1]
paths = helpers.Paths({"cloud_dir": root, "run_dir": root + "/run", "templates_dir": root})
DataSourceNoCloud.dmi.read_dmi_data = lambda key: None
util.get_cmdline = lambda: ""
source = DataSourceNoCloud.DataSourceNoCloud(
    {"datasource": {"NoCloud": {"fs_label": None}}}, debian.Distro("debian", {}, paths), paths
)
source.ds_cfg["fs_label"] = None
assert source._get_data(), "cloud-init does not take it for a seed"


def parts(message):
    return [
        [part.get_content_type(), part.get_filename(), util.fully_decoded_payload(part)]
        for part in message.walk()
        if part.get_content_maintype() != "multipart"
    ]


host = source.get_hostname()
print(json.dumps({
    "instance": source.get_instance_id(),
    "hostname": getattr(host, "hostname", host),
    "keys": source.get_public_ssh_keys(),
    "user": [[kind, name, body if isinstance(body, str) else body.decode()] for kind, name, body in parts(source.get_userdata())],
    "vendor": [[kind, name, body if isinstance(body, str) else body.decode()] for kind, name, body in parts(source.get_vendordata())],
}))
