#!/usr/bin/env bash
# Builds the container images.   usage: deploy/image.sh [serve|train|all] [cpu|gpu]
#
# BASE=IMAGE names the base image. Where the default one cannot be pulled, one is made with debootstrap
# from the Debian mirror that apt uses here. What pip is configured with here (indexes, directories of
# wheels, CA file, proxy) is mounted into the build and stays out of every layer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/image_tool.sh

wanted=${1:-all} runtime=${2:-cpu}
case $wanted in all) targets="serve train" ;; serve | train) targets=$wanted ;; *) die "target '$wanted': serve, train or all" ;; esac
case $runtime in cpu | gpu) ;; *) die "runtime '$runtime': cpu or gpu" ;; esac

scratch=$(mktemp -d)
trap 'rm -rf --one-file-system "$scratch"' EXIT

build() { # the arguments of `docker build`
  if [ "$tool" = docker ]; then export DOCKER_BUILDKIT=1; fi
  "${engine[@]}" build --network host "$@"
}

have() { # IMAGE: it is here already
  if [ "$tool" = buildah ]; then "${engine[@]}" inspect --type image "$1"; else "${engine[@]}" image inspect "$1"; fi >/dev/null 2>&1
}

# apt's own view of its sources, so that every format of sources.list works.
mirror() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Label: $1" | head -n 1; }

debootstrap_base() { # NAME: Debian bookworm with python3.11 and nothing of this machine
  local root=$scratch/base/root debian security
  [ "$(id -u)" = 0 ] || die "making a base image with debootstrap needs root; or set BASE"
  command -v debootstrap >/dev/null || die "debootstrap is not installed; or set BASE"
  debian=$(mirror Debian) security=$(mirror Debian-Security)
  [ -n "$debian" ] || die "apt knows no Debian mirror here (apt-get update?); or set BASE"
  mkdir -p "$root"
  # python3-distutils: debootstrap does not see that it is the python3.11-distutils that venv asks for
  debootstrap --variant=minbase --include=python3.11,python3.11-venv,python3-distutils,ca-certificates \
    bookworm "$root" "$debian" >"$scratch/debootstrap.log" 2>&1 || { tail "$scratch/debootstrap.log" >&2; die "debootstrap failed"; }
  if [ -n "$security" ]; then
    echo "deb $security bookworm-security main" >>"$root/etc/apt/sources.list"
    apt-config dump Acquire >"$root/etc/apt/apt.conf.d/99host"
    chroot "$root" sh -c 'apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y upgrade' >/dev/null
  fi
  (
    cd "$root"
    rm -rf etc/apt/sources.list etc/apt/apt.conf.d/99host etc/resolv.conf etc/hostname etc/machine-id run/mount \
      var/lib/apt/lists/* var/cache/apt/* var/cache/debconf/*-old var/log/* usr/share/man/* usr/share/locale/* usr/share/info/*
    find usr/share/doc -mindepth 1 -not -name copyright -not -type d -delete # licences stay
    find . -xdev -name __pycache__ -prune -exec rm -rf {} +
  )
  tar -C "$root" --one-file-system --numeric-owner -cf "$scratch/base/base.tar" .
  rm -rf --one-file-system "$root"
  printf 'FROM scratch\nADD base.tar /\nCMD ["python3.11"]\n' >"$scratch/base/Dockerfile"
  build -q -t "$1" "$scratch/base" >/dev/null
}

find_base() { # sets BASE
  local pulled=python:3.11-slim-bookworm made=reward-base:bookworm
  if [ -n "${BASE:-}" ]; then return; fi
  if have "$pulled" || timeout 600 "${engine[@]}" pull "$pulled" >/dev/null 2>"$scratch/pull.log"; then
    BASE=$pulled
    return
  fi
  echo "$pulled cannot be pulled here; the base is $made, by debootstrap"
  have "$made" || debootstrap_base "$made"
  BASE=$made
}

# The pip configuration of this machine, rewritten for the build: $scratch/pip.conf, $scratch/ca.pem,
# and, below $scratch/local, hard links (copies on another file system) to local package directories.
mkdir "$scratch/local"
"$python" - "$scratch" <<'PYTHON'
import ast, configparser, os, subprocess, sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

stage = Path(sys.argv[1])
passed = "index-url extra-index-url find-links no-index trusted-host proxy timeout default-timeout retries".split()
trees: list[Path] = []


def inside(key: str, place: str) -> str:
    """A local directory becomes its path in the build; a URL stays."""
    url = urlsplit(place)
    path = Path(unquote(url.path) if url.scheme == "file" else place).expanduser()
    if url.scheme not in ("", "file") or not path.exists():
        return place
    path = path.resolve()
    # pages of an index link to files beside it, a page of links to files beside itself
    tree = path.parent if key.endswith("index-url") or path.is_file() else path
    if tree not in trees:
        trees.append(tree)
    there = Path("/run/local", str(trees.index(tree)), path.relative_to(tree))
    return f"file://{there}"


lines = subprocess.run([sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, text=True, check=True)
found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}  # the later wins
for line in lines.stdout.splitlines():
    name, _, value = line.partition("=")
    section, _, key = name.rpartition(".")
    if section in found:
        found[section][key] = ast.literal_eval(value)
settings = {key: value for section in found.values() for key, value in section.items()}

authorities = [settings.get("cert"), *map(os.environ.get, ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))]
authority = next((Path(each) for each in authorities if each and Path(each).is_file()), None)
config = configparser.RawConfigParser()
config["global"] = {
    key: "\n".join(inside(key, word) for word in settings[key].split()) for key in passed if key in settings
}
(stage / "ca.pem").write_bytes(authority.read_bytes() if authority else b"")
if authority:
    config["global"]["cert"] = "/run/secrets/ca.pem"
with (stage / "pip.conf").open("w") as out:
    config.write(out)
for number, tree in enumerate(trees):
    there = stage / "local" / str(number)
    if subprocess.run(["cp", "-rlL", tree, there], stderr=subprocess.DEVNULL).returncode:
        subprocess.run(["cp", "-rL", tree, there], check=True)
PYTHON

proxies=()
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
  if [ -n "${!name:-}" ]; then proxies+=(--build-arg "$name"); fi # predefined: kept out of the image
done

find_base
for target in $targets; do
  image=$(image_name "$target" "$runtime") started=$SECONDS
  build --target "$target" -t "$image" "${proxies[@]}" \
    --build-arg BASE="$BASE" --build-arg RUNTIME="$runtime" --build-arg VERSION="$version" \
    --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
    --secret id=pip.conf,src="$scratch/pip.conf" --secret id=ca.pem,src="$scratch/ca.pem" \
    --build-context local="$scratch/local" .
  if [ "$tool" = buildah ]; then
    size=$("${engine[@]}" images --format '{{.Size}}' "$image")
  else
    size="$(($("${engine[@]}" image inspect --format '{{.Size}}' "$image") / 1000000)) MB"
  fi
  echo "$image: $size, built by $tool in $((SECONDS - started)) s"
done
