"""Messages for a peer whose pipe is full."""

from collections.abc import Sequence

from lmq_broker.shell.backlog import Backlog
from lmq_broker.shell.door import SendFailed
from lmq_proto.ids import PeerId

ANN, TOM = PeerId(b"ann"), PeerId(b"tom")


class Pipes:
    """Peers' pipes: room for so many messages each; -1: the peer is gone."""

    def __init__(self) -> None:
        self.room = {ANN: 100, TOM: 100}
        self.sent: list[tuple[PeerId, bytes]] = []

    def send(self, peer: PeerId, frames: Sequence[bytes]) -> None:
        if self.room[peer] <= 0:
            raise SendFailed(gone=self.room[peer] < 0)
        self.room[peer] -= 1
        self.sent.append((peer, frames[0]))


def test_what_does_not_fit_is_sent_later_and_in_order() -> None:
    pipes = Pipes()
    backlog = Backlog(pipes.send)
    pipes.room[ANN] = 1
    for number in range(4):
        backlog.send(ANN, [b"%d" % number], 0)
    backlog.send(TOM, [b"x"], 0)
    assert pipes.sent == [(ANN, b"0"), (TOM, b"x")], "others do not wait"
    pipes.room[ANN] = 2
    assert backlog.retry(5) == {}
    assert backlog
    pipes.room[ANN] = 5
    backlog.send(ANN, [b"4"], 6)
    assert backlog.retry(10) == {}
    assert [text for peer, text in pipes.sent if peer == ANN] == [b"0", b"1", b"2", b"3", b"4"]
    assert not backlog


def test_a_peer_that_does_not_read_for_long_is_lost() -> None:
    pipes = Pipes()
    backlog = Backlog(pipes.send)
    pipes.room[ANN] = 0
    backlog.send(ANN, [b"a"], 0)
    assert backlog.retry(9_000) == {}
    assert backlog.retry(10_001) == {ANN: False}
    assert not backlog


def test_a_peer_that_is_gone_is_lost_at_once() -> None:
    pipes = Pipes()
    backlog = Backlog(pipes.send)
    pipes.room[ANN] = -1
    backlog.send(ANN, [b"a"], 0)
    assert backlog.retry(0) == {ANN: True}


def test_what_waits_for_one_peer_is_bounded() -> None:
    pipes = Pipes()
    backlog = Backlog(pipes.send)
    pipes.room[ANN] = 0
    for _ in range(9):
        backlog.send(ANN, [bytes(8 * 1024 * 1024)], 0)
    assert backlog.retry(0) == {ANN: False}
