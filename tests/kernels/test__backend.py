from hard_kernels import _backend


def test_triton_is_looked_for_without_importing_it():
    assert isinstance(_backend.has_triton(), bool)


def test_switches_are_read_from_the_environment(monkeypatch):
    for name, is_on in (
        ("TRITON_INTERPRET", _backend.is_interpreted),
        ("HARD_KERNELS_DEBUG", _backend.is_debugged),
    ):
        monkeypatch.delenv(name, raising=False)
        assert not is_on()
        monkeypatch.setenv(name, "1")
        assert is_on()
