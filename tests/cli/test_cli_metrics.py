"""The command metrics prints all figures in Prometheus' text format."""

import re

import pytest
from support.commandline import run

from shmrhash import RHashMap


def test_metrics_are_prometheus_text(make, users, tmp_path):
    """The parser of prometheus_client reads the output of metrics; the text file has the same
    contents."""
    parser = pytest.importorskip("prometheus_client.parser", reason="needs prometheus_client")
    make().close()
    make("other", entries=7).close()
    alive = users.start(RHashMap.open, "hits")
    dead = users.start(RHashMap.open, "hits")
    users.kill(dead)

    text = run("metrics").out
    run("metrics", "-o", tmp_path / "shmrhash.prom")

    samples = {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["shmrhash_entries", "hits"] == 3
    assert samples["shmrhash_entries", "other"] == 7
    assert samples["shmrhash_max_entries", "hits"] == 1000
    assert samples["shmrhash_processes", "hits", "alive"] == 1
    assert samples["shmrhash_processes", "hits", "dead"] == 1
    assert samples["shmrhash_map_usable", "dead owners", "hits"] == 1
    assert samples["shmrhash_recoveries_total", "hits"] == 0
    assert samples["shmrhash_directory_size_bytes",] > 0
    operations = {key[-1] for key in samples if key[0] == "shmrhash_process_operations_total"}
    assert operations == {str(alive), str(dead)}
    as_json = {
        (one["name"], *(one["labels"][label] for label in sorted(one["labels"]))): one["value"]
        for one in run("-j", "metrics").json
    }
    assert as_json.keys() == samples.keys()
    assert as_json["shmrhash_entries", "hits"] == 3
    written = (tmp_path / "shmrhash.prom").read_text()
    assert re.findall(r"^\w+", text, re.MULTILINE) == re.findall(r"^\w+", written, re.MULTILINE)
    only = run("-j", "metrics", "/other").json
    assert {one["labels"]["map"] for one in only if "map" in one["labels"]} == {"other"}
