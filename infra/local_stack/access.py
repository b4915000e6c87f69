"""Who may call the two servers, and under which names: what has to be set before they start, and what each process is told.

PREFECT_SERVER_API_AUTH_STRING       user:password of Prefect, one for all; its clients have it as PREFECT_API_AUTH_STRING
MLFLOW_AUTH_ADMIN_PASSWORD           switches MLflow's accounts on; the account `admin` gets it at the first start
MLFLOW_FLASK_SERVER_SECRET_KEY       signs the forms of MLflow's page
MLFLOW_TRACKING_USERNAME, _PASSWORD  the account of the workers here
"""

import configparser
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from components.errors import ParamsError
from infra.local_stack.ports import ANYWHERE

ACCOUNTS_SWITCH = "MLFLOW_AUTH_ADMIN_PASSWORD"
CONFIG_PATH = "MLFLOW_AUTH_CONFIG_PATH"
WITH_ACCOUNTS = ("MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""Without the first MLflow does not start; without the others the workers would record into the void."""
BEYOND_LOOPBACK = ("PREFECT_SERVER_API_AUTH_STRING", ACCOUNTS_SWITCH, *WITH_ACCOUNTS)
SERVERS_ONLY = ("PREFECT_SERVER_API_AUTH_STRING", ACCOUNTS_SWITCH, "MLFLOW_FLASK_SERVER_SECRET_KEY")
"""Stages run code of models and users: it has no business with the administrator's password, or with what signs forms."""
MIN_PASSWORD_LENGTH = 12
"""MLflow's own law, of every account."""
OWN_NAMES = ("localhost:*", "127.0.0.1:*")


def require_passwords(environ: Mapping[str, str], host: str, is_loopback: bool) -> None:
    """Raises ParamsError that names everything that is missing at once: a server that dies of it would leave the other alone."""
    wanted: tuple[str, ...] = BEYOND_LOOPBACK
    if is_loopback:
        wanted = WITH_ACCOUNTS if environ.get(ACCOUNTS_SWITCH) else ()
    lacking = [name for name in wanted if not environ.get(name)]
    if not lacking:
        return _require_length(environ.get(ACCOUNTS_SWITCH, ""))
    why = f"{ACCOUNTS_SWITCH} makes MLflow ask for accounts" if is_loopback else f"BALLAST_HOST={host} lets other machines in"
    way_out = f"{ACCOUNTS_SWITCH} MLflow asks nobody" if is_loopback else "BALLAST_HOST everything stays on this machine"
    raise ParamsError(
        f"{why}, and {' and '.join(lacking)} must be set before; what they are, and how the workers get an account: "
        f'docs/security.md, "Switch authentication on". Without {way_out}'
    )


def _require_length(password: str) -> None:
    if 0 < len(password) < MIN_PASSWORD_LENGTH:
        raise ParamsError(f"{ACCOUNTS_SWITCH} must have {MIN_PASSWORD_LENGTH} characters at least: MLflow demands it")


def without_server_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in SERVERS_ONLY}


def accounts_config(environ: Mapping[str, str], derived: Path) -> dict[str, str]:
    """Where MLflow reads what an account may do: the user's own file, or the one that `write_accounts_config` derives."""
    is_ours = bool(environ.get(ACCOUNTS_SWITCH)) and not environ.get(CONFIG_PATH)
    return {CONFIG_PATH: str(derived)} if is_ours else {}


def write_accounts_config(original: Path, derived: Path, database: Path) -> None:
    """The project's file with an absolute address: a relative one depends on the folder that the server is started in."""
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(original.read_text(encoding="utf-8"))
    config["mlflow"]["database_uri"] = f"sqlite:///{database}".replace("%", "%%")  # MLflow reads it with interpolation
    derived.parent.mkdir(parents=True, exist_ok=True)
    with derived.open("w", encoding="utf-8") as file:
        config.write(file)


def name_options(host: str, port: int, is_loopback: bool, environ: Mapping[str, str]) -> list[str]:
    """Options of `mlflow server`: under which names it may be called, and from which pages. On loopback its own defaults serve.

    MLflow compares both as they are, ports included. A name with `*` allows calls, never pages: a stranger's could match it.
    """
    names = [name for word in environ.get("BALLAST_ALLOWED_HOSTS", "").split(",") if (name := word.strip())]
    if is_loopback and not names:
        return []
    own = [] if host in ANYWHERE else [host]
    options = []
    # Listening everywhere without a name: MLflow's defaults, loopback and private addresses.
    if names or (own and not environ.get("MLFLOW_SERVER_ALLOWED_HOSTS")):
        called = [*names, *(_with_port(name, port) for name in [*names, *own]), *OWN_NAMES]
        options += ["--allowed-hosts", ",".join(dict.fromkeys(called))]
    if not environ.get("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"):
        pages = [*(f"http://{_with_port(name, port)}" for name in [*(own or _own_addresses()), *names] if "*" not in name)]
        pages += [f"https://{name}" for name in names if "*" not in name]  # of the proxy before it
        options += ["--cors-allowed-origins", ",".join(dict.fromkeys(pages))] if pages else []
    return options


def _with_port(name: str, port: int) -> str:
    if name.count(":") > 1 and not name.startswith("["):
        name = f"[{name}]"
    return name if name.rpartition("]")[2].count(":") else f"{name}:{port}"


def _own_addresses() -> Iterable[str]:
    """What a browser may call a server that listens everywhere: the machine's name, and its IPv4 addresses."""
    found = [net.address for nets in psutil.net_if_addrs().values() for net in nets if net.family == socket.AF_INET]
    return [socket.getfqdn(), *found]
