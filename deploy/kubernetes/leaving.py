"""Run before and after a node's life, in its container. Before the stop: a node whose machine is cordoned hands its
blocks on. Any other stop is a restart on the same machine, which finds them again: handing them on would be work for
nothing. After a start on a machine that is not cordoned: a drain that was begun is taken back.

leaving.py stop | start
"""

import json
import os
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ADMIN = ["store-admin", "--address", f"unix:{os.environ['KVSTORE_NODE_SOCKET']}"]
START_S = 900  # a large memory tier takes its time
ASK_S = 5
PAUSE_S = 2


def cordoned() -> bool:
    """Whether Kubernetes puts no new pods on this machine. Raises OSError where it does not say."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    where = f"https://{f'[{host}]' if ':' in host else host}:{port}/api/v1/nodes/{os.environ['NODE_NAME']}"
    headers = {"Authorization": "Bearer " + (ACCOUNT / "token").read_text().strip()}
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(urllib.request.Request(where, headers=headers), timeout=ASK_S, context=context) as got:
        return bool(json.load(got)["spec"].get("unschedulable"))


def surely_cordoned(until: float) -> bool:
    """Asked again until then: a machine that has just been booted may not reach Kubernetes yet. Raises OSError."""
    while True:
        try:
            return cordoned()
        except OSError:
            if time.monotonic() >= until:
                raise
            time.sleep(PAUSE_S)


def started(until: float) -> bool:
    while time.monotonic() < until:
        if subprocess.run([*ADMIN, "status", "--node", "self"], capture_output=True, check=False).returncode == 0:
            return True
        time.sleep(PAUSE_S)
    return False


def main(moment: str) -> int:
    until = time.monotonic() + (START_S if moment == "start" else 0)
    try:
        leaving = surely_cordoned(until)
        # Asked again when it has started, which may take minutes: it may have been told to leave meanwhile.
        stays = moment == "start" and not leaving and started(until) and not surely_cordoned(until)
    except OSError as error:
        print(f"leaving.py: Kubernetes does not say whether this machine is cordoned: {error}", file=sys.stderr)
        return 0  # neither drained nor taken back: both would be guesses
    if moment == "stop" and leaving:
        subprocess.run([*ADMIN, "drain"], check=False)
    if stays:
        subprocess.run([*ADMIN, "drain", "--cancel"], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
