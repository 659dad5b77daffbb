"""PROTOCOL.md says what the code does: every table of it is compared with the code it speaks of."""

from __future__ import annotations

import inspect
import json
import re
from typing import TYPE_CHECKING

import msgspec
import pytest

from lmq_broker.core import hindrances, reasons
from lmq_broker.core.rights import MAY
from lmq_proto import bounds, codec, ids
from lmq_proto.errors import WIRE_ERRORS
from lmq_proto.events import Kind
from lmq_proto.messages import FROM_PEER, ON_PUB, TO_PEER, FromClient, FromWorker, Part, ToClient, ToWorker
from lmq_proto.states import MOVES, Phase, State
from unit.proto.protocol_text import (
    DESCRIBED,
    MESSAGES,
    SECTIONS,
    TEXT,
    default_name,
    struct_named,
    table_with,
    type_name,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

FIELDS = ["Field", "Type", "Default", "Unit, bound", "Meaning"]


def parts_of(kind: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    """Yield a struct and all structs its fields hold."""
    yield kind
    for info in msgspec.structs.fields(kind):
        for name in re.findall(r"[A-Z]\w+", type_name(info.type)):
            part = struct_named(name)
            assert part is not None, name
            yield from parts_of(part)


def test_every_message_and_every_part_of_one_has_its_paragraph() -> None:
    spoken = {part for kind in MESSAGES.values() for part in parts_of(kind)}
    assert {struct_named(heading) for heading in DESCRIBED} == spoken
    assert set(MESSAGES) <= set(DESCRIBED)


@pytest.mark.parametrize("heading", DESCRIBED)
def test_a_field_table_names_each_field_with_type_and_default(heading: str) -> None:
    kind = struct_named(heading)
    assert kind is not None
    tables = [table for table in DESCRIBED[heading].tables if table[0] == FIELDS]
    described = [row[:3] for row in tables[0][1:]] if tables else []
    assert described == [
        [f"`{info.name}`", type_name(info.type), default_name(info)] for info in msgspec.structs.fields(kind)
    ]
    if not described:
        assert "No fields." in DESCRIBED[heading].prose


@pytest.mark.parametrize("heading", DESCRIBED)
def test_bounds_that_field_tables_name_exist(heading: str) -> None:
    for table in DESCRIBED[heading].tables:
        for name in re.findall(r"`([A-Z_]+)`", " ".join(row[3] for row in table if table[0] == FIELDS)):
            assert hasattr(bounds, name), name


@pytest.mark.parametrize("verb", [*FROM_PEER, *TO_PEER])
def test_a_verb_says_who_sends_it(verb: str) -> None:
    prose = DESCRIBED[verb].prose.strip()
    if verb in FROM_PEER and verb in TO_PEER:
        direction = "Both ways"
    elif verb in FROM_PEER:
        direction = "Client to broker" if issubclass(FROM_PEER[verb], FromClient) else "Worker to broker"
        assert issubclass(FROM_PEER[verb], FromClient | FromWorker)
    elif issubclass(TO_PEER[verb], ToClient | ToWorker):
        direction = "Broker to client" if issubclass(TO_PEER[verb], ToClient) else "Broker to worker"
    else:
        direction = "Broker to any peer"
    assert prose.startswith(direction), prose


@pytest.mark.parametrize("verb", FROM_PEER)
def test_a_verb_names_its_group_its_reply_and_its_errors(verb: str) -> None:
    prose = DESCRIBED[verb].prose
    group = re.search(r"group (\w+)", prose)
    assert group is not None
    groups = {row[0]: words(row[1]) for row in table_with("Group", "Verbs", "Roles")}
    assert verb in groups[group[1]]
    reply = re.search(r"Reply `(\w+)`", prose)
    asks = any(info.name == "request_id" for info in msgspec.structs.fields(FROM_PEER[verb]))
    assert asks == (reply is not None) or verb == "follow_text"
    assert reply is None or reply[1] in TO_PEER
    for sentence in re.findall(r"Errors ((?:`\w+` ?)+)", prose):
        assert set(words(sentence)) <= set(WIRE_ERRORS)


def test_the_table_of_rights_is_that_of_the_broker() -> None:
    told: dict[str, set[type[Part]]] = {role: set() for role in MAY}
    for _, verbs, roles in table_with("Group", "Verbs", "Roles"):
        for role in words(roles):
            told[role] |= {FROM_PEER[verb] for verb in words(verbs)}
    assert told == {role: set(kinds) for role, kinds in MAY.items()}


def test_the_table_of_moves_is_that_of_the_code() -> None:
    told: dict[State, dict[State, str]] = {state: {} for state in State}
    for origin, target, when in table_with("From", "To", "When"):
        told[State(words(origin)[0])][State(words(target)[0])] = when
    assert told == MOVES


def test_the_picture_of_states_names_each_state() -> None:
    picture = next(section for section in SECTIONS if section.heading.endswith("States of a job")).code
    assert {state for state in State if state in "\n".join(picture)} == set(State)


def test_the_table_of_phases_is_that_of_the_code() -> None:
    tables = next(section for section in SECTIONS if section.heading.endswith("States of a job")).tables
    assert [words(row[0])[0] for row in tables[1][1:]] == list(Phase)


def test_the_table_of_bounds_is_that_of_the_code() -> None:
    told = {words(row[0])[0]: int(row[1]) for row in table_with("Name", "Number", "Bounds")}
    assert told == {name: getattr(bounds, name) for name in dir(bounds) if name.isupper()}


def test_the_table_of_errors_is_that_of_the_code() -> None:
    told = {
        words(row[0])[0]: (row[1] == "yes", words(row[2]))
        for row in table_with("Code", "Retryable", "Fields", "Means, and what to do")
    }
    made = {
        code: (kind.retryable, list(inspect.signature(kind).parameters)) for code, kind in WIRE_ERRORS.items()
    }
    assert told == made


def test_the_table_of_events_has_each_kind() -> None:
    assert [words(row[0])[0] for row in table_with("Kind", "Of", "When", "`detail`")] == list(Kind)


def test_the_table_of_reasons_has_each_code() -> None:
    told = {code for row in table_with("Code", "The job", "Fields") for code in words(row[0])}
    source = inspect.getsource(reasons) + inspect.getsource(hindrances)
    ends = {State.DONE, State.DEAD, State.CANCELLED, State.EXPIRED}
    assert told == set(re.findall(r'\bcode ?= ?"(\w+)"', source)) | ends


def test_the_table_of_topics_has_each_message_of_the_pub_socket() -> None:
    assert {words(row[1])[0] for row in table_with("Topic", "Verb", "When")} == set(ON_PUB)


def test_links_inside_lead_to_a_heading() -> None:
    anchors = {re.sub(r"[^\w -]", "", section.heading.lower()).replace(" ", "-") for section in SECTIONS}
    for target in re.findall(r"\]\(#([^)]*)\)", TEXT):
        assert target in anchors, target


def test_an_id_in_the_text_is_one_that_the_code_writes() -> None:
    assert ids.job_id(0, bytes(10)) == bytes(16)
    assert "0123456789ABCDEFGHJKMNPQRSTVWXYZ" in TEXT


# --- the transcript ---------------------------------------------------------------------------------------------------


def transcript() -> list[tuple[str, str, bytes, str, bytes]]:
    """Return (direction, verb, header, JSON, body) of each message in the transcript."""
    found: list[tuple[str, str, bytes, str, bytes]] = []
    for line in next(section for section in SECTIONS if section.heading.endswith("A transcript")).code:
        begins = re.fullmatch(r"(C > B|B > C) (\w+)", line)
        told = line.strip()
        if begins:
            found.append((begins[1], begins[2], b"", "", b""))
        elif told and not told.startswith("#"):
            direction, verb, header, shown, body = found[-1]
            if told.startswith("{"):
                shown = told
            elif told.startswith("body "):
                body = bytes.fromhex(told.removeprefix("body "))
            else:
                header = bytes.fromhex(told)
            found[-1] = (direction, verb, header, shown, body)
    return found


TRANSCRIPT = transcript()


def readable(value: object) -> object:
    """Return a header's value as the transcript shows it."""
    if isinstance(value, bytes):
        return f"hex:{value.hex()}"
    if isinstance(value, dict):
        return {name: readable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [readable(each) for each in value]
    return value


@pytest.mark.parametrize("number", range(len(TRANSCRIPT)))
def test_the_transcript_decodes_to_what_it_shows(number: int) -> None:
    direction, verb, header, shown, body = TRANSCRIPT[number]
    frames = [b"LMQ1", verb.encode(), header, body]
    table = codec.FROM_PEER_TABLE if direction == "C > B" else codec.TO_PEER_TABLE
    message, same_body = table.decode(frames)
    assert same_body == body
    assert codec.encode(message, body) == frames
    assert readable(msgspec.msgpack.decode(header)) == json.loads(shown)


def test_the_transcript_shows_a_submit_to_its_end_and_a_reconnect() -> None:
    verbs = [verb for _, verb, _, _, _ in TRANSCRIPT]
    assert verbs[:4] == ["hello", "welcome", "submit", "submitted"]
    assert {"follow_text", "text", "finished", "credit", "error"} <= set(verbs)
    who = verbs.index("who")
    assert verbs[who - 1 : who + 5] == ["submit", "who", "hello", "welcome", "submit", "submitted"]
    assert TRANSCRIPT[who - 1] == TRANSCRIPT[who + 3], "a resend is the same message"


def test_bodies_of_the_transcript_are_as_long_as_their_headers_say() -> None:
    for direction, verb, header, _, body in TRANSCRIPT:
        told = msgspec.msgpack.decode(header)
        lengths = [entry["payload_bytes"] for entry in told.get("jobs", [])] if verb == "submit" else []
        lengths += [entry.get("result_bytes", 0) for entry in told["jobs"]] if verb == "finished" else []
        assert b"".join(codec.cut(body, lengths)) == body, (direction, verb)
