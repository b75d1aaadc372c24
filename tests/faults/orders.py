"""A program in the place of pw.x that runs the real one, and does something to one of its calls.

Each call counts itself. The order says what happens to some of them: it is killed, its memory or its disk ends, what
it leaves is cut off or overwritten. What was done is a line of the file ``injected``.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PRELUDE = """#!/bin/bash
PW='{pw}' MARKS='{marks}' AT=' {at} '
sleep {pause}
call=1
while ! mkdir "$MARKS/call.$call" 2>/dev/null; do call=$((call + 1)); done
injected() {{ echo "call $call: $*" >> "$MARKS/injected"; }}
struck() {{ case "$AT" in *" $call "*) true ;; *) false ;; esac }}
frame=$(grep -A3 ATOMIC_POSITIONS aiida.in | md5sum)
job_shells() {{
    pid=$$
    while pid=$(ps -o ppid= -p "$pid" | tr -d ' '); tr '\\0' ' ' < "/proc/$pid/cmdline" | grep -q _aiidasubmit; do
        echo "$pid"
    done
}}
"""
DAMAGE = """
overwrite() {  # FILE THOUSANDTHS: 64 random bytes
    size=$(stat -c %s "$1") && [ "$size" -gt 200 ] || return
    head -c 64 /dev/urandom | dd of="$1" bs=1 seek=$((size * $2 / 1000)) conv=notrunc status=none
    injected overwrote "$1"
}
cut_off() {  # FILE THOUSANDTHS
    size=$(stat -c %s "$1") || return
    truncate -s $((size * $2 / 1000)) "$1" && injected cut "$1" off
}
"""
AT_END = 'injected() { echo "end: $*" >> "$MARKS/injected"; }' + DAMAGE
RUN = """
exec "$PW" "$@"
"""


@dataclass(frozen=True)
class Order:
    """What is done.

    :param kind: for people.
    :param text: shell, for the call in question.
    :param at_end: shell, run when the job's program has ended.
    :param always: ``text`` is run at each call and decides itself.
    """

    kind: str
    text: str = ""
    at_end: str = ""
    always: bool = False


def write_program(folder: Path, order: Order, *, at: Sequence[int], pause_s: float = 0.0) -> tuple[Path, str]:
    """Write the program; its path, and what the code appends to the script of the job.

    :param at: numbers of the calls, from 1.
    :param pause_s: slept in each call, so that there is a moment to do something from outside.
    """
    folder.mkdir(parents=True)
    prelude = PRELUDE.format(pw=shutil.which("pw.x"), marks=folder, at=" ".join(map(str, at)), pause=pause_s)
    path = folder / "pw.sh"
    condition = "true" if order.always else "struck"
    path.write_text(f"{prelude}{DAMAGE}if {condition}; then\n{order.text or ':'}\nfi\n{RUN}")
    path.chmod(0o755)
    end = folder / "end.sh"
    end.write_text(f"MARKS='{folder}'\n{AT_END}{order.at_end}")
    return path, f". '{end}'" if order.at_end else ""


def injections(folder: Path) -> list[str]:
    """What was done so far."""
    path = folder / "injected"
    return path.read_text().splitlines() if path.exists() else []


# -- orders, drawn at random -----------------------------------------------------------------------------------------

_AFTER = '"$PW" "$@"\nstatus=$?\n{}\nexit $status\n'
_XML = "out/aiida.save/data-file-schema.xml"


_SPOILS = '[ -e results.tar ] && [ "$(cat "$MARKS/injected" 2> /dev/null | wc -l)" -lt 3 ]'


def killed(rng: random.Random, *, bundle: bool) -> Order:
    """SIGKILL of pw.x as soon as a file is there, which tells how far it is."""
    stage = rng.choice(["aiida.in", "out", "out/aiida.save", "out/aiida.save/charge-density.dat"])
    text = f"""
"$PW" "$@" &
pid=$!
while kill -0 $pid 2>/dev/null && [ ! -e {stage} ]; do :; done
kill -9 $pid
wait $pid
status=$?
[ $status -eq 137 ] && injected SIGKILL when {stage} was there
exit $status
"""
    return Order("killed", text)


_END_THE_JOB = """
"$PW" "$@" > /dev/null 2>&1 &
shells=$(job_shells)
injected {what}
[ -n '{term}' ] && kill -TERM $shells && sleep 0.2
kill -KILL $shells $$
"""


def walltime(rng: random.Random, *, bundle: bool) -> Order:
    """The job is ended as a scheduler does at its limit: SIGTERM, then SIGKILL."""
    return Order("walltime", _END_THE_JOB.format(what="limit reached", term="term"))


def lost_job(rng: random.Random, *, bundle: bool) -> Order:
    """All of the job vanishes at once; or the scheduler forgets it, and it runs on."""
    if rng.random() < 0.5:
        return Order("lost", _END_THE_JOB.format(what="job vanished", term=""))
    text = 'job_shells | tail -1 >> "$MARKS/../../lost"\ninjected forgotten by the scheduler\nsleep 4\n'
    return Order("lost", text)


def memory(rng: random.Random, *, bundle: bool) -> Order:
    """A limit of the address space that pw.x does not fit in."""
    limit = rng.choice([60_000, 90_000, 140_000])  # in between, and above, pw.x may spin until its walltime
    text = f'ulimit -v {limit}\n"$PW" "$@"\nstatus=$?\n[ $status -ne 0 ] && injected {limit} kB\nexit $status\n'
    return Order("memory", text)


#: The output folder is a small disk while pw.x runs (in a mount namespace of its own), and is put in place after it.
_SMALL_DISK = """unshare -m true || exit 70
injected the disk of out has {size} kB
unshare -m bash -c 'mount -t tmpfs -o size={size}k full out && "$0" "$@"; status=$?
cp -a out out.kept; umount out; cp -a out.kept/. out/; exit $status' "$PW" "$@"
exit $?
"""


def disk_full(rng: random.Random, *, bundle: bool) -> Order:
    """No room for what is in ``out``, for files beyond some size, or (bundle) for anything more of the job.

    pw.x 6.7 says JOB DONE where its XML file did not fit, and ends with 0.
    """
    which = rng.choice(["device", "limit", "job"])
    if which == "device":
        text = _SMALL_DISK.format(size=rng.choice([4, 12, 20, 36, 44, 52]))
    elif which == "limit" or not bundle:
        text = 'injected files end at 16 kB\nulimit -f 16\n"$PW" "$@"\nexit $?\n'
    else:
        text = "for shell in $(job_shells); do prlimit --pid $shell --fsize=2048; done\ninjected files end at 2 kB\n"
    return Order("disk", text)


def truncated(rng: random.Random, *, bundle: bool) -> Order:
    """The XML file, the output, or the results of a bundle, cut off anywhere."""
    where = rng.randrange(20, 950)
    if bundle and rng.random() < 0.6:
        return Order("truncated", at_end=f"{_SPOILS} && cut_off results.tar {where}\n")
    name = rng.choice([_XML, "aiida.out"])
    return Order("truncated", _AFTER.format(f"cut_off {name} {where}"))


def corrupt(rng: random.Random, *, bundle: bool) -> Order:
    """64 bytes overwritten anywhere."""
    where = rng.randrange(20, 950)
    if bundle and rng.random() < 0.6:
        return Order("corrupt", at_end=f"{_SPOILS} && overwrite results.tar {where}\n")
    name = rng.choice([_XML, "aiida.out"])
    return Order("corrupt", _AFTER.format(f"overwrite {name} {where}"))


def parser_error(rng: random.Random, *, bundle: bool) -> Order:
    """A well-formed XML file in which a number is none: the parser of aiida-quantumespresso raises."""
    tag = rng.choice(["etot", "etotps", "nbnd", "nelec", "alat"])
    text = _AFTER.format(
        f'sed -i \'s|<{tag}>[^<]*<|<{tag}>nonsense<|; s|alat="[^"]*"|alat="x"|\' {_XML} && injected {tag} is no number'
    )
    return Order("parser", text)


def unconverged(rng: random.Random, *, bundle: bool) -> Order:
    """One frame whose scf never converges, until somebody does something about it (the file ``cured``)."""
    text = """
struck && echo "$frame" > "$MARKS/frame"
if [ "$(cat "$MARKS/frame" 2>/dev/null)" = "$frame" ] && [ ! -e "$MARKS/cured" ]; then
    sed -i 's/electron_maxstep =.*/electron_maxstep = 2/' aiida.in
    injected two iterations at most
fi
"""
    return Order("scf", text, always=True)


NOTHING = Order("nothing")
ORDERS = {
    "pw.x killed": killed,
    "walltime": walltime,
    "disk full": disk_full,
    "output truncated": truncated,
    "output corrupt": corrupt,
    "scheduler loses the job": lost_job,
    "parser error": parser_error,
    "scf never converges": unconverged,
    "out of memory": memory,
}
