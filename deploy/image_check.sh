#!/usr/bin/env bash
# Runs the serve image as Kubernetes would: as its own user, on a read-only root file system with only
# /tmp writable, without capabilities, and here without a network either. `verify` must reproduce the
# golden scores, the service must score one of them over HTTP, and SIGTERM must drain it.
# usage: deploy/image_check.sh [BUNDLE] [cpu|gpu]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/image_tool.sh

bundle=$(realpath "${1:-runs/demo/bundle}") image=$(image_name serve "${2:-cpu}")
[ -f "$bundle/manifest.json" ] || die "$bundle is no bundle (make demo makes one)"
name=reward-image-check-$$ scratch=$(mktemp -d)
mounted=

clean() {
  case $tool in
    buildah)
      crun_ delete --force "$name" 2>/dev/null || true
      if [ -n "$mounted" ]; then "${engine[@]}" rm "$mounted" >/dev/null; fi
      ;;
    *) "${engine[@]}" rm --force "$name" >/dev/null 2>&1 || true ;;
  esac
  rm -rf --one-file-system "$scratch"
}
trap clean EXIT

# crun refuses hosts that mount both generations of cgroups, even when it is to make none: in a mount
# namespace of its own it does not see the second.
crun_() {
  unshare --mount sh -c '
    if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi
    exec crun "$@"' crun --root "$scratch/state" --cgroup-manager disabled "$@"
}

# buildah cannot make the root read-only under chroot isolation, so the OCI runtime does it: $scratch/oci
# becomes a bundle of its kind, from the image's own configuration.
oci_config() { # the arguments of the image's entry point
  if [ -z "$mounted" ]; then
    command -v crun >/dev/null || die "checking an image that buildah built needs crun"
    mkdir -p "$scratch/oci"
    mounted=$("${engine[@]}" from --pull-never "localhost/$image")
    "${engine[@]}" mount "$mounted" >"$scratch/rootfs"
    (cd "$scratch/oci" && crun spec && mv config.json default.json)
    "${engine[@]}" inspect --type image "localhost/$image" >"$scratch/image.json"
  fi
  "$python" - "$scratch" "$bundle" "$@" <<'PYTHON'
import json, sys
from pathlib import Path

scratch, bundle, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
image = json.loads((scratch / "image.json").read_text())["OCIv1"]["config"]
spec = json.loads((scratch / "oci/default.json").read_text())
uid, gid = map(int, image["User"].split(":"))
process = spec["process"]
process.pop("rlimits", None)  # those of this shell
process.update(
    terminal=False, user={"uid": uid, "gid": gid}, args=image["Entrypoint"] + arguments, env=image["Env"],
    cwd=image["WorkingDir"], capabilities={}, noNewPrivileges=True,
)
spec["root"] = {"path": (scratch / "rootfs").read_text().strip(), "readonly": True}
spec["mounts"] = [each for each in spec["mounts"] if each["type"] != "cgroup"] + [
    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "noexec", "mode=1777"]},
    {"destination": "/bundle", "type": "bind", "source": bundle, "options": ["rbind", "ro"]},
]
spec["linux"].pop("resources", None)
(scratch / "oci/config.json").write_text(json.dumps(spec))
(scratch / "process.json").write_text(json.dumps(process | {"args": ["python", "-"]}))
PYTHON
}

run() { # the arguments of the image's entry point
  if [ "$tool" = buildah ]; then
    oci_config "$@"
    crun_ run --bundle "$scratch/oci" "$name"
  else
    "${engine[@]}" run --rm --name "$name" --read-only --tmpfs /tmp:mode=1777 --network none --cap-drop ALL \
      --security-opt no-new-privileges --volume "$bundle:/bundle:ro" "$image" "$@"
  fi
}

inside() { # a Python program on standard input, in the running container
  if [ "$tool" = buildah ]; then
    crun_ exec --process "$scratch/process.json" "$name"
  else
    "${engine[@]}" exec --interactive "$name" python -
  fi
}

terminate() { if [ "$tool" = buildah ]; then crun_ kill "$name" TERM; else "${engine[@]}" kill --signal TERM "$name" >/dev/null; fi; }

echo "$image, $tool: reward-serve verify /bundle"
run verify /bundle

echo "reward-serve run /bundle --host 0.0.0.0"
run run /bundle --host 0.0.0.0 >"$scratch/log" 2>&1 &
service=$!
for _ in $(seq 120); do
  grep -q '^ready' "$scratch/log" && break
  kill -0 "$service" 2>/dev/null || break
  sleep 1
done
grep '^ready' "$scratch/log" || { tail -n 40 "$scratch/log" >&2; die "the service did not become ready"; }

inside <<'PYTHON'
import errno
import importlib.util
import json
import os
import urllib.request

URL = "http://127.0.0.1:8000"


def score(**pair: str) -> dict:
    with urllib.request.urlopen(f"{URL}/score", json.dumps(pair).encode(), timeout=60) as answer:
        return json.load(answer)


assert urllib.request.urlopen(f"{URL}/readyz", timeout=60).status == 200
golden = json.load(open("/bundle/golden.json"))[0]
answer = score(prompt=golden["prompt"], responses=[golden["response"]])
result = answer["results"][0]
assert abs(result["reward"] - golden["reward"]) <= 1e-4, (answer, golden)
print(f"scored over HTTP: {result}, by {answer['engine']}; torch said {golden['reward']}")

assert os.getuid() == os.geteuid() == 10001, os.getuid()
status = {key: value.strip() for key, _, value in (line.partition(":") for line in open("/proc/1/status"))}
assert status["Uid"].split() == ["10001"] * 4 and int(status["CapBnd"], 16) == 0, status
print(f"uid {os.getuid()}; process 1 is {status['Name']} with uids {status['Uid'].split()}, no capabilities")

absent = ["torch", "transformers", "training", "pip"]
assert not [each for each in absent if importlib.util.find_spec(each)]
paths = [os.path.join(place, tool) for place in os.environ["PATH"].split(":") for tool in ("cc", "gcc", "curl", "wget", "git")]
assert not [each for each in paths if os.path.exists(each)]
print(f"not importable: {', '.join(absent)}; no compiler, curl, wget or git")

kernel = ("/proc", "/sys", "/dev")
for place in ("/", "/var/tmp", "/etc", "/opt/reward", "/bundle", os.path.dirname(importlib.util.find_spec("service").origin)):
    try:
        open(os.path.join(place, "x"), "w")
    except OSError as error:
        assert error.errno == errno.EROFS, (place, error)
    else:
        raise AssertionError(f"{place} can be written")
writable = []
for place, folders, _ in os.walk("/"):
    folders[:] = [each for each in folders if os.path.join(place, each) not in (*kernel, "/tmp")]
    writable += [place] if os.access(place, os.W_OK) else []
assert not writable, writable
open("/tmp/x", "w").close()
print("EROFS on writing to /, /var/tmp, /etc, /opt/reward, /bundle; no writable directory but below /tmp")
assert ".ses" not in os.listdir("/tmp"), "the session file of ONNX Runtime's telemetry is there"
print(f"written by the service: {sorted(os.listdir('/tmp'))}")
PYTHON

terminate
code=0
wait "$service" || code=$?
grep '^draining' "$scratch/log" || true
[ "$code" = 0 ] || { tail -n 40 "$scratch/log" >&2; die "after SIGTERM the service ended with $code"; }
echo "$image: all held; SIGTERM drained it, exit code 0"
