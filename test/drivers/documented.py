# Does what an application would with the functions that doc/drivers.md shows for psycopg, for the orders from argument 2 to argument 3.  Argument 1: that file.
import re
import sys
import time

import psycopg

path, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
code = re.search(r"^## psycopg 3$.*?^```python\n(.*?)^```$", open(path, encoding="utf-8").read(), re.M | re.S)[1]
exec(code)

connection = psycopg.connect("", autocommit=True)

# paid once
ids = [pay(connection, order) for order in range(first, last + 1)]
assert [pay(connection, order) for order in range(first, last + 1)] == [None] * len(ids)
assert None not in ids and len(set(ids)) == len(ids)

# received once; what failed is not received
try:
    receive(connection, str(ids[0]), {"order": "none"})
    sys.exit("an error that was none")
except psycopg.Error:
    pass
for _ in range(2):
    receive(connection, str(ids[0]), {"order": first})

# the others are pulled
give_up = time.monotonic() + 60
while connection.execute("SELECT count(*) FROM invoice WHERE order_id BETWEEN %s AND %s", [first, last]).fetchone()[0] < len(ids):
    assert time.monotonic() < give_up, "events to pull"
    work(connection)
