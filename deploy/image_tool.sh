# Sourced by image.sh and image_check.sh: which tool holds the images, and what they are called.
# Docker if its daemon answers, else podman, else buildah, which needs neither daemon nor container.

die() { echo "image: $*" >&2; exit 1; }

python=${PYTHON:-python3}
if docker info >/dev/null 2>&1; then
  tool=docker
elif podman info >/dev/null 2>&1; then
  tool=podman
elif command -v buildah >/dev/null; then
  tool=buildah
  [ "$(id -u)" = 0 ] || die "buildah without a daemon needs root here; run as root, or install podman"
  # These work inside a container too: no nested overlay, no nested namespaces.
  export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}
  engine=(buildah --storage-driver "${STORAGE_DRIVER:-vfs}")
else
  die "none of docker (with a running daemon), podman and buildah is here"
fi

[ "$tool" = buildah ] || engine=("$tool")

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -n 1)
image_name() { echo "reward-$1:$version-$2"; }  # TARGET RUNTIME
