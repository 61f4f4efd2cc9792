"""A site for gunicorn whose workers count requests, and are killed in some of them."""

import os
import signal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

import shmrhash.prometheus

NAME = os.environ["METRICS"]

shmrhash.prometheus.use(NAME)

requests = Counter("requests", "Requests.", ["path"])
seconds = Histogram("seconds", "Seconds.", buckets=(1, 2))
alive = Gauge("alive", "Workers.", multiprocess_mode="livesum")
served = Gauge("served", "Requests of a worker.", multiprocess_mode="sum")
registry = CollectorRegistry()
shmrhash.prometheus.ShmCollector(NAME, registry)


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/metrics":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [generate_latest(registry)]
    requests.labels(path).inc()
    seconds.observe(1.5)
    alive.set(1)
    served.inc()
    if path == "/die":
        os.kill(os.getpid(), signal.SIGKILL)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
