"""Finds, in a parsed file, the uses of what Windows or macOS lacks that no guard stands before.

A guard is an `if` (or `and`, or `x if y else z`) that asks `sys.platform`, `os.name` or `hasattr`, an
`assert` or an early return of that kind, or a `try` that expects the name to be missing.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MODULES = frozenset(
    "crypt curses fcntl grp msvcrt nis posix pty pwd readline resource spwd syslog systemd termios tty "
    "uvloop winreg winsound _winapi".split()
)

ATTRIBUTES = {
    "os": frozenset(
        "WNOHANG chown chroot eventfd fchmod fchown fork forkpty getegid geteuid getgid getgroups getloadavg "
        "getpgid getpgrp getsid getuid initgroups killpg lchown mkfifo mknod nice openpty pidfd_open "
        "posix_spawn pread preadv pwrite pwritev sched_getaffinity sched_setaffinity sendfile setegid "
        "seteuid setgid setpgid setpgrp setpriority setsid setuid startfile statvfs sync tcgetpgrp ttyname "
        "uname wait wait3 wait4 waitid".split()
    ),
    "signal": frozenset(
        "CTRL_BREAK_EVENT CTRL_C_EVENT ITIMER_REAL SIGALRM SIGBREAK SIGCHLD SIGCONT SIGHUP SIGIO SIGKILL "
        "SIGPIPE SIGQUIT SIGRTMIN SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 SIGWINCH alarm pause pidfd_send_signal "
        "pthread_kill pthread_sigmask setitimer sigpending sigtimedwait sigwait sigwaitinfo".split()
    ),
    "select": frozenset("devpoll epoll kevent kqueue poll".split()),
    "socket": frozenset("AF_NETLINK AF_UNIX SO_PEERCRED SO_REUSEPORT".split()),
    "time": frozenset(["clock_gettime", "pthread_getcpuclockid", "tzset"]),
}

# Methods of an event loop, whatever it is called.
METHODS = frozenset(["add_signal_handler", "remove_signal_handler", "add_child_handler"])
KEYWORDS = frozenset(["preexec_fn"])
MISSING = frozenset(
    ["ImportError", "ModuleNotFoundError", "AttributeError", "NotImplementedError", "Exception"]
)


def unguarded_uses(tree: ast.Module) -> list[tuple[int, str]]:
    """Return (line, what) of each use of a platform's own that nothing guards."""
    return list(_in_block(tree.body))


def _in_block(statements: Sequence[ast.stmt]) -> Iterator[tuple[int, str]]:
    """Yield the uses in a run of statements, up to the one that lets only some platforms pass."""
    for statement in statements:
        yield from _in_node(statement)
        if isinstance(statement, ast.Assert) and _asks_platform(statement.test):
            return
        if isinstance(statement, ast.If) and _asks_platform(statement.test) and _leaves(statement.body):
            return


def _in_node(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.If | ast.IfExp | ast.While) and _asks_platform(node.test):
        return
    if isinstance(node, ast.BoolOp) and any(_asks_platform(value) for value in node.values):
        return
    if isinstance(node, ast.Try) and any(_expects_missing(handler) for handler in node.handlers):
        for part in (*node.handlers, *node.orelse, *node.finalbody):
            yield from _in_node(part)
        return
    if isinstance(node, ast.With) and any(_suppresses_missing(item.context_expr) for item in node.items):
        return
    yield from _uses(node)
    for _, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            yield from _in_node(value)
        elif isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            yield from _in_block(value)
        elif isinstance(value, list):
            for part in value:
                if isinstance(part, ast.AST):
                    yield from _in_node(part)


def _uses(node: ast.AST) -> Iterator[tuple[int, str]]:
    match node:
        case ast.Import(names=names):
            yield from ((node.lineno, a.name) for a in names if a.name.partition(".")[0] in MODULES)
        case ast.ImportFrom(module=str(module), names=names):
            if module.partition(".")[0] in MODULES:
                yield node.lineno, module
            yield from (
                (node.lineno, f"{module}.{a.name}") for a in names if a.name in ATTRIBUTES.get(module, ())
            )
        case ast.Attribute(value=ast.Name(id=module), attr=attr) if attr in ATTRIBUTES.get(module, ()):
            yield node.lineno, f"{module}.{attr}"
        case ast.Attribute(attr=attr) if attr in METHODS:
            yield node.lineno, f".{attr}"
        case ast.keyword(arg=str(arg)) if arg in KEYWORDS:
            yield node.value.lineno, f"{arg}="
        # A whole address, not a mention inside a sentence, nor the scheme alone that code compares with.
        case ast.Constant(value=str(text)) if text.startswith("ipc://") and text != "ipc://":
            yield node.lineno, text
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]) if text == "ipc://":
            yield node.lineno, text


def _asks_platform(test: ast.expr) -> bool:
    for node in ast.walk(test):
        match node:
            case ast.Attribute(value=ast.Name(id="sys"), attr="platform"):
                return True
            case ast.Attribute(value=ast.Name(id="os"), attr="name"):
                return True
            case ast.Call(func=ast.Name(id="hasattr")):
                return True
            case ast.Name(id=name) if name == "TYPE_CHECKING":
                return True
    return False


def _leaves(block: Sequence[ast.stmt]) -> bool:
    return isinstance(block[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)


def _expects_missing(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    return any(isinstance(n, ast.Name) and n.id in MISSING for n in ast.walk(handler.type))


def _suppresses_missing(context: ast.expr) -> bool:
    match context:
        case ast.Call(func=ast.Name(id="suppress") | ast.Attribute(attr="suppress"), args=args):
            return any(isinstance(arg, ast.Name) and arg.id in MISSING for arg in args)
    return False
