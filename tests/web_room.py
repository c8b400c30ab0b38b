"""A review room for tests: users of every role, clients that are logged in, and a plan made by a stand-in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from vmat_diffusion.files import content_hash
from vmat_diffusion.web import accounts
from vmat_diffusion.web.app import create_app
from vmat_diffusion.web.cases import cases
from vmat_diffusion.web.queue.jobs import Claim, claim, complete, submit
from vmat_diffusion.web.room import Room, Rules
from vmat_diffusion.web.runs import RunEntry, file_hashes
from vmat_diffusion.web.store import now, open_store

PASSWORD = "a long enough secret"
USERS = {
    "planner": ["planner"],
    "reviewer": ["reviewer"],
    "admin": ["admin"],
    "both": ["planner", "reviewer"],
}
WORKER = (sys.executable, str(Path(__file__).with_name("stand_in_worker.py")))
# A sheet that the stand-in's plan meets.
SHEET = (
    'title = "t"\nsite = "test"\nsource = "test"\nfractions = 25\n[prescription_gy]\nPTV = 50\n'
    '[normalization]\nPTV = "D95% = 52 Gy"\n[[goals]]\nstructure = "PTV"\ngoal = "D95% >= 47 Gy"\n'
    'priority = 1\nsource = "test"\n'
)


@dataclass(frozen=True)
class Client:
    """A browser of one user: `ask` sends the session's token."""

    http: TestClient
    user_id: str = ""
    token: str = ""

    def ask(self, method: str, path: str, json: Any = None, **more: Any) -> Any:
        """The answer to a request of a page."""
        headers = {"X-CSRF-Token": self.token} | more.pop("headers", {})
        return self.http.request(method, path, json=json, headers=headers, **more)


@dataclass(frozen=True)
class SmallRoom:
    """A room with a user for each role."""

    room: Room
    ids: dict[str, str]

    def anonymous(self, base: str = "http://localhost") -> Client:
        """A browser without a session."""
        return Client(TestClient(create_app(self.room, work=False), base_url=base, follow_redirects=False))

    def client(self, name: str) -> Client:
        """A browser of a user, without the cost of a password."""
        user = accounts.user_of(self.room.store, self.ids[name])
        assert user is not None
        secret, session = accounts.new_session(self.room.store, user)
        http = self.anonymous().http
        http.cookies.set("session", secret)
        return Client(http, user.id, session.csrf)

    def user(self, name: str) -> accounts.User:
        """The user of that name."""
        user = accounts.user_of(self.room.store, self.ids[name])
        assert user is not None
        return user

    def case(self, case_folder: Path) -> str:
        """The id of the small case, put into the data folder."""
        target = self.room.store.folder / "cases" / "Doe^John"
        if not target.exists():
            shutil.copytree(case_folder, target)
        return cases(self.room)[0].id

    def job(self, case_id: str, user: str = "planner") -> str:
        """A job for that case with the small sheet."""
        return submit(self.room, case_id, {"goals": self.sheet(), "seed": 0}, self.user(user))

    def sheet(self) -> str:
        """The small sheet among those of the site."""
        folder = self.room.store.folder / "goals"
        folder.mkdir(exist_ok=True)
        (folder / "small.toml").write_text(SHEET, encoding="utf-8")
        return str(folder / "small.toml")

    def claimed(self) -> Claim:
        """The next job of the queue, claimed."""
        found = claim(self.room)
        assert found is not None
        return found

    def worker(self, given: Claim, **environment: str) -> subprocess.Popen[bytes]:
        """A process that makes the plan of a claim."""
        return subprocess.Popen(
            [*WORKER, str(self.room.store.folder), given.job_id, given.token],
            env=os.environ | environment,
            start_new_session=True,
        )

    def state(self, job_id: str) -> str:
        """The state of a job."""
        with self.room.store.read() as db:
            return str(db.execute("SELECT state FROM jobs WHERE id = ?", (job_id,)).fetchone()["state"])

    def run_id(self, job_id: str) -> str:
        """The id of a job's plan."""
        with self.room.store.read() as db:
            return str(db.execute("SELECT run_id FROM jobs WHERE id = ?", (job_id,)).fetchone()["run_id"])


def small_room(folder: Path, **rules: Any) -> SmallRoom:
    """A new room in a folder."""
    room = Room(open_store(folder), Rules(hosts=("localhost", "testserver"), **rules))
    ids = {
        name: accounts.add_user(room.store, name, roles, PASSWORD, actor="terminal").id
        for name, roles in USERS.items()
    }
    return SmallRoom(room, ids)


def planned(
    room: SmallRoom, case_id: str, *, by: str = "planner", outcome: str = "PASSED", is_open: bool = False
) -> str:
    """The id of a plan of a case, as a worker would have entered it; with a check that can go on."""
    from stand_in_worker import record

    job = room.job(case_id, by)
    given, run_id = room.claimed(), room.run_id(job)
    folder = room.room.run_folder(run_id)
    folder.mkdir()
    for name in ["RD.dcm", "report.html", "control_points.csv"] + (["RP.dcm"] if outcome == "PASSED" else []):
        (folder / name).write_text(f"<p>{name}</p>", encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(record(outcome)), encoding="utf-8")
    if is_open:
        (folder / "open_check").mkdir()
        (folder / "open_check" / "state.json").write_text("{}", encoding="utf-8")
    case_folder = room.room.case_folder("Doe^John")
    (folder / "case").symlink_to(case_folder, target_is_directory=True)
    user, slices = room.ids[by], {"PTV": [8, 9, 10], "CTV": [9]}
    entry = RunEntry(run_id, case_id, 0, user, now(), outcome, file_hashes(folder), slices)
    assert complete(room.room.store, given, entry, content_hash(case_folder), {"optimise": 1.0})
    return run_id
