# What an application does with psycopg 3: the same as node-postgres.js, and it prints the same.
# Arguments: "prepared" to let the driver prepare what it has sent a few times.
import sys
from concurrent.futures import ThreadPoolExecutor

import psycopg
from psycopg.types.json import Jsonb

LINE = "SELECT outbox.enqueue('order.paid', %s::jsonb, key => %s::text)"
prepared = sys.argv[1:] == ["prepared"]


def connect(**options):
    return psycopg.connect("", prepare_threshold=3 if prepared else None, **options)


def enqueue(connection, how, key):
    return connection.execute(LINE, [Jsonb({"how": how}), key]).fetchone()[0]


# plain; as JSON's text, and without a key; and often enough to be prepared
with connect(autocommit=True) as connection:
    print("committed", enqueue(connection, "plain", "psycopg-1"))
    print("committed", connection.execute(LINE, ['{"how": "text"}', None]).fetchone()[0])
    for i in range(10):
        print("committed", enqueue(connection, "again", "psycopg-2"))

# in a transaction with a business write; and one that is rolled back
for end in "COMMIT", "ROLLBACK":
    with connect() as connection:
        connection.execute("INSERT INTO orders (note) VALUES (%s)", [end])
        event_id = enqueue(connection, end, "psycopg-3")
        connection.commit() if end == "COMMIT" else connection.rollback()
        print("committed" if end == "COMMIT" else "rolled back", event_id)


# many clients at once, some of which roll back
def client(i):
    with connect() as connection:
        event_id = enqueue(connection, "pool", f"pool-{i}")
        if i % 4 == 0:
            connection.rollback()
            return f"rolled back {event_id}"
        connection.commit()
        return f"committed {event_id}"


with ThreadPoolExecutor(8) as pool:
    print("\n".join(pool.map(client, range(40))))
