"""NearCache: the hot part of a server's keys in shared memory, kept coherent by the server's
reports.

source: the wall to servers, which other modules implement: redis for one server, cluster for many.
state: the shared words. tracker: the process that listens, and its successor. cache: the public
class. A module imports only those named before it.
"""
