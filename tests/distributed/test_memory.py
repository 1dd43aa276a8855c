"""What is limited fails by itself, and afterwards all is as before."""

import resource
import sys

import pytest

from lightning_prune.distributed.memory import limited

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no limit holds")


def test_more_than_the_room_fails_and_less_does_not() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited(2**27):
        assert len(bytearray(2**26)) == 2**26
        with pytest.raises(MemoryError):
            bytearray(2**28)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(bytearray(2**28)) == 2**28


def test_no_room_is_as_much_as_there_is() -> None:
    with limited(None):
        assert len(bytearray(2**28)) == 2**28


def test_a_limit_of_the_user_s_is_never_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (2**40, before[1]))
    try:
        with limited(2**41):
            assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 2**40
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 2**40
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
