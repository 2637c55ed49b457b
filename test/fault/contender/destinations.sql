-- What every contender has: who gets what. The harness fills it in. What producers call has the names it has in the extension, so that they are the same programs.
CREATE SCHEMA outbox;
CREATE TABLE outbox.destination (name text PRIMARY KEY, url text NOT NULL, secret text NOT NULL, types text[] NOT NULL);
