"""Reads a config drive's folder with cloud-init's own code and prints what it understood, as JSON. For the tests."""
import json
import sys

from cloudinit import sources
from cloudinit.sources import DataSourceConfigDrive

results = DataSourceConfigDrive.read_config_drive(sys.argv[1])
metadata = results["metadata"]
vendor = sources.convert_vendordata(results.get("vendordata"))


def text(data):
    return data.decode() if isinstance(data, bytes) else data


print(json.dumps({
    "instance": metadata["instance-id"],
    "hostname": metadata.get("local-hostname"),
    "keys": sources.normalize_pubkey_data(metadata.get("public_keys")),
    "user": text(results.get("userdata")),
    "vendor": text(vendor),
}))
