import pytest

from hard_fast.data import probe
from hard_fast.data.probe import Finding, Place, build_decoder

GOOD = [
    ("RGB", {}, ()),
    ("L", {}, ("grey",)),
    ("CMYK", {}, ("CMYK",)),
    ("RGB", {"orientation": 6}, ("EXIF orientation",)),
    ("RGB", {"orientation": 1}, ()),
    ("RGB", {"progressive": True}, ()),
    ("RGB", {"kind": "PNG"}, ()),
    ("I;16", {"kind": "PNG"}, ("grey", "16 bits")),
    ("P", {"kind": "PNG"}, ("palette or alpha",)),
    ("RGBA", {"kind": "PNG"}, ("palette or alpha",)),
    ("LA", {"kind": "PNG"}, ("grey", "palette or alpha")),
    ("1", {"kind": "PNG"}, ("grey",)),
    ("RGB", {"kind": "WEBP"}, ()),
    ("RGB", {"kind": "BMP"}, ()),
    ("RGB", {"kind": "TIFF"}, ()),
    ("RGB", {"kind": "PPM"}, ()),
]


@pytest.fixture(scope="module", params=["DALI", "Pillow"])
def decode(request):
    """Both decoders; DALI's falls away where it is not installed."""
    name, decode = build_decoder()
    if request.param == "DALI":
        if not name.startswith("DALI"):
            pytest.skip("needs DALI")
        return decode
    return probe._pillow_reason


def put(tmp_path, payload: bytes) -> Place:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"before" + payload + b"behind")
    return Place(str(path), 6, len(payload))


@pytest.mark.parametrize(("mode", "options", "odd"), GOOD)
def test_odd_pictures_are_fine(tmp_path, encode, decode, mode, options, odd):
    place = put(tmp_path, encode(mode=mode, **options))
    assert probe.probe(place, decode) == Finding(None, odd)


def test_bad_files_are_told_apart(tmp_path, encode, decode):
    jpeg, png = encode(size=(96, 64)), encode("PNG")
    for payload, said in [
        (jpeg[: len(jpeg) // 2], "truncated"),
        (png[: len(png) // 2], "truncated"),
        (encode("WEBP", size=(96, 64))[:300], "decoder"),
        (b"<!DOCTYPE html><html>404</html>", "no picture (starts with b'<!DOCTYPE html><')"),
        (b"\0" * 5000, "no picture"),
    ]:
        finding = probe.probe(put(tmp_path, payload), decode)
        assert finding.reason is not None, said
        assert said.lower() in finding.reason.lower() and "\n" not in finding.reason
        # Nor is the next picture held responsible.
        assert probe.probe(put(tmp_path, jpeg), decode).reason is None


def test_files_without_content_have_reasons_of_their_own(tmp_path, decode):
    (tmp_path / "a.jpg").touch()
    assert probe.probe(Place(f"{tmp_path}/a.jpg", 0, 0), decode).reason == "empty file"
    assert probe.probe(Place(f"{tmp_path}/b.jpg", 0, 0), decode).reason == "link to nowhere"
    assert probe.probe(Place(f"{tmp_path}/b.jpg", 0, 9), decode).reason == (
        "cannot be read (No such file or directory)"
    )


def test_what_only_dali_refuses_is_said(encode):
    name, decode = build_decoder()
    if not name.startswith("DALI"):
        pytest.skip("needs DALI")
    assert decode(encode("GIF")).startswith("not decoded by DALI (")
    assert decode(encode()) is None
