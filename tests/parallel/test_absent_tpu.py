"""libtpu asks for a TPU's metadata only where there may be one."""

import os

import pytest

from deberta_jax.parallel import absent_tpu

ASKED = "TPU_SKIP_MDS_QUERY"


@pytest.mark.parametrize(
    "vendors, quiet",
    [(["0x8086", "0x1af4"], True), (["0x8086", "0x1ae0"], False), ([], False)],
    ids=["none", "a TPU", "unknown"],
)
def test_quiet_where_no_device_is_a_tpu(vendors, quiet, tmp_path, monkeypatch):
    monkeypatch.delenv(ASKED, raising=False)
    for number, vendor in enumerate(vendors):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "vendor").write_text(f"{vendor}\n")
    absent_tpu.keep_quiet(tmp_path)
    assert (os.environ.get(ASKED) == "1") is quiet
    monkeypatch.setenv(ASKED, "0")  # what the user set stays
    absent_tpu.keep_quiet(tmp_path)
    assert os.environ[ASKED] == "0"
