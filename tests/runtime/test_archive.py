import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from hard_fast.runtime.archive import check_unpacked_size, load_plain, reading_failure


def bomb(num: int) -> bytes:
    """A zip of a few hundred thousand bytes that unpacks to `num` million."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w", force_zip64=True) as file,
    ):
        for _ in range(num):
            file.write(bytes(10**6))
    return buffer.getvalue()


def test_a_zip_bomb_is_refused_and_what_is_no_zip_passes(tmp_path):
    with pytest.raises(ValueError, match=r"^x.npz: [0-9,]+ bytes .* to unpack to 300,000,0"):
        check_unpacked_size(io.BytesIO(bomb(300)), "x.npz")
    check_unpacked_size(io.BytesIO(bomb(10)), "x.npz")
    (tmp_path / "a").write_bytes(b"PK\3\4 no zip")
    check_unpacked_size(tmp_path / "a", "a")
    np.savez_compressed(tmp_path / "zeros.npz", images=np.zeros((1000, 28, 28), np.uint8))
    check_unpacked_size(tmp_path / "zeros.npz", "zeros.npz")
    with pytest.raises(OSError):
        check_unpacked_size(tmp_path / "none", "none")


def test_tensors_and_plain_values_are_loaded_from_a_file_and_from_memory(tmp_path):
    tree = {"weight": torch.arange(3.0), "step": 3}
    torch.save(tree, tmp_path / "a.pt")
    memory = io.BytesIO((tmp_path / "a.pt").read_bytes())
    for file in (tmp_path / "a.pt", memory):
        found = load_plain(file, "a.pt")
        assert torch.equal(found["weight"], tree["weight"]) and found["step"] == 3


@pytest.mark.parametrize("payload", [b"", b"junk", pickle.dumps(print), bomb(1)])
def test_all_else_is_one_line(payload):
    with pytest.raises(ValueError, match=r"^a.pt: (damaged|holds a Python object)[^\n]*$"):
        load_plain(io.BytesIO(payload), "a.pt")


def test_the_advice_to_load_unsafely_is_left_out():
    said = reading_failure(pickle.UnpicklingError("Set weights_only=False\nGLOBAL os.system"))
    assert "os.system" in said and "weights_only" not in said
