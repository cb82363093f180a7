"""A cluster with a replica on each of two workers, as in Kubernetes; it ends with its input.

python -m tests.e2e.two_workers BUNDLE, which prints where it listens, its GCS, a worker's node id.
"""

import os
import sys
from contextlib import ExitStack

from service.app import APP, environment
from service.config import ServiceConfig
from service.ports import FOR_PROXIES, hold


def main() -> None:
    config = ServiceConfig(bundle=sys.argv[1])
    with ExitStack() as held:
        [port] = hold(1, FOR_PROXIES, held)
    os.environ |= environment(config) | {"RAY_AUTH_MODE": "disabled"}
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from service.deployment import RewardReplica

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    leaving, _ = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    serve.start(proxy_location="HeadOnly", http_options={"port": port})
    replicas = RewardReplica.options(
        num_replicas=2,
        max_replicas_per_node=1,
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=config.drain_timeout_s,
    )
    serve.run(replicas.bind(config.model_dump(mode="json")), name=APP, route_prefix="/")
    print(f"ready at http://127.0.0.1:{port}", cluster.address, leaving.node_id, flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
