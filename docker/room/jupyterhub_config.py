"""JupyterHub for a room: learners with a password each, a container each, and a volume each that outlives it.

The settings come from the environment (``docker/room/compose.yaml`` has them all). Passwords are made here, at the
first start, into a file that the teacher reads: none is in an image, none is chosen by whoever comes first, and nobody
gets in without one.
"""

import hmac
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from docker.types import DeviceRequest
from jupyterhub.auth import Authenticator

c = get_config()  # noqa: F821

HOME = Path("/srv/hub")
SLIPS = HOME / "slips.txt"
LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
"""Without those that look alike on paper."""
LAB = "/home/jovyan/lab"


def read_slips(path: Path, names: list[str]) -> dict[str, str]:
    """Names and passwords from a file, which gets a line for each name that it lacks; the others stay as they are."""
    slips = dict(line.split() for line in path.read_text().splitlines() if line.strip()) if path.exists() else {}
    for name in names:
        slips.setdefault(name, "".join(secrets.choice(LETTERS) for _ in range(12)))
    beside = path.with_suffix(".new")
    beside.touch(mode=0o600)
    beside.write_text("".join(f"{name} {password}\n" for name, password in slips.items()))
    beside.replace(path)
    return {name: slips[name] for name in names}


class Slips(Authenticator):
    """Learners who know the password of their slip of paper."""

    passwords: dict[str, str]

    async def authenticate(self, handler: Any, data: dict[str, str]) -> str | None:
        name = self.normalize_username(data["username"])
        password = self.passwords.get(name)
        given = data["password"].strip()
        return name if password and hmac.compare_digest(password.encode(), given.encode()) else None


LEARNERS = [f"learner{number:02}" for number in range(1, int(os.environ["LEARNERS"]) + 1)]
Slips.passwords = read_slips(SLIPS, [*LEARNERS, "teacher"])

c.JupyterHub.authenticator_class = Slips
c.Authenticator.allowed_users = set(LEARNERS)
c.Authenticator.admin_users = {"teacher"}  # may start and stop servers at /hub/admin, and look into them
c.JupyterHub.db_url = f"sqlite:///{HOME}/hub.sqlite"
c.JupyterHub.cookie_secret_file = str(HOME / "cookie_secret")
c.JupyterHub.hub_ip = "0.0.0.0"  # learners' servers ask it who somebody is
c.JupyterHub.hub_connect_ip = "hub"
c.JupyterHub.bind_url = "http://:8000"
if Path("/srv/tls/key.pem").exists():
    c.JupyterHub.bind_url = "https://:8000"
    c.JupyterHub.ssl_key, c.JupyterHub.ssl_cert = "/srv/tls/key.pem", "/srv/tls/cert.pem"

c.JupyterHub.spawner_class = "docker"
c.DockerSpawner.image = os.environ["LEARNER_IMAGE"]
c.DockerSpawner.network_name = os.environ["ROOM_NETWORK"]
c.DockerSpawner.use_internal_ip = True
c.DockerSpawner.volumes = {"tplab-{username}": LAB}
c.DockerSpawner.notebook_dir = LAB
c.DockerSpawner.remove = True  # the container; the volume stays, and is there again at the next start
c.DockerSpawner.mem_limit = os.environ["LEARNER_MEMORY"]
c.DockerSpawner.cpu_limit = float(os.environ["LEARNER_CPUS"])
c.DockerSpawner.extra_host_config = {
    "shm_size": "1g",  # NCCL passes data between ranks through it
    "pids_limit": 1024,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])] if os.environ["LEARNER_GPUS"] else [],
}
c.Spawner.default_url = "/lab/tree/notebooks/00-start-here.ipynb"
c.Spawner.start_timeout = 120
c.Spawner.http_timeout = 60

# A server that nobody has used for two hours gives its memory back. (Idle ranks end by themselves after 30 minutes.)
c.JupyterHub.load_roles = [
    {
        "name": "idle-culler",
        "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
        "services": ["idle-culler"],
    }
]
c.JupyterHub.services = [
    {"name": "idle-culler", "command": [sys.executable, "-m", "jupyterhub_idle_culler", "--timeout=7200"]}
]
