-- The database of the interview service, which receives. As a superuser, once.
CREATE EXTENSION outbox;

CREATE TABLE interview_session (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id   bigint      NOT NULL,             -- not UNIQUE, to show that the inbox is enough
    candidate  text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE ROLE interviews LOGIN;
GRANT INSERT ON interview_session TO interviews;
SELECT outbox.grant_role('interviews', 'consumer');

-- Remember events for longer than the sender may repeat them: it retries for 3 days, and keeps dead letters, which can be redriven, for 30.
SELECT outbox.set_consumer('interviews', retention => '60 days', sender_retry_span => '33 days');

SELECT outbox.start();   -- its worker sends nothing here, but forgets what is older
