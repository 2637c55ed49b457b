/*
 * A consumer of a pull subscription, for the fault harness: leases events, and does what they ask for in the transaction that acknowledges them, once.
 *
 *   consumer --conninfo TEXT --subscription NAME --number N --seed N
 *
 * The effect of an event is a row in table effect, behind outbox.accept_many().  As the seed says, it is too slow for its lease, rolls back, or gives events back. It comes back
 * when its connection is lost, and ends on SIGTERM.
 */
#include <signal.h>

#include "session.h"

static PGconn *session;
static const char *conninfo,
		   *subscription;
static uint64_t seed;
static long round_number;
static int	number;
static volatile sig_atomic_t ending;

static void
end(int signal_number)
{
	(void) signal_number;
	ending = 1;
}

/* Effects of what is new among what was leased, in its order, and the acknowledgement. */
static bool
work_off(PGresult *leased)
{
	static Buffer ids,
				payloads;
	const char *values[] = {subscription, NULL, NULL, PQgetvalue(leased, 0, 2)};
	PGresult   *result;

	ids.length = payloads.length = 0;
	for (int i = 0; i < PQntuples(leased); i++)
	{
		appendf(&ids, "%c%s", i ? ',' : '{', PQgetvalue(leased, i, 0));
		appendf(&payloads, "%c%s", i ? ',' : '[', PQgetvalue(leased, i, 1));
	}
	append(&ids, "}", 1);
	append(&payloads, "]", 1);
	values[1] = ids.data;
	values[2] = payloads.data;
	result = ask(session, "WITH new AS MATERIALIZED (SELECT unnest(outbox.accept_many($1, $2::text[]))::uuid AS id)"
				 " INSERT INTO effect (subscription, id, payload)"
				 " SELECT $1, leased.id, leased.payload FROM ROWS FROM (unnest($2::uuid[]), jsonb_array_elements($3::jsonb)) WITH ORDINALITY AS leased(id, payload, place) JOIN new USING (id) ORDER BY place",
				 3, values);
	if (!result)
		return false;
	PQclear(result);
	values[1] = values[3];
	result = ask(session, "SELECT outbox.ack($1, NULL, $2::uuid)", 2, values);
	PQclear(result);
	return result != NULL;
}

static void
take_some(void)
{
	uint64_t	dice = mix(seed ^ mix((uint64_t) number << 40 ^ (uint64_t) ++round_number));
	const char *values[] = {subscription, dice % 10 == 0 ? "200 ms" : "10 s", NULL};
	PGresult   *leased = ask(session, "SELECT event_id, payload, token FROM outbox.pull($1, 20, $2::interval)", 2, values);

	if (!leased || PQntuples(leased) == 0)
	{
		PQclear(leased);
		usleep(20000);
		return;
	}
	dice >>= 8;
	if (dice % 20 == 0)			/* some of the short leases end meanwhile */
		usleep(300000);
	if (dice % 25 == 1)
	{
		values[1] = PQgetvalue(leased, 0, 2);
		PQclear(ask(session, "SELECT outbox.nack($1, NULL, $2::uuid, '50 ms', 'the plan says so')", 2, values));
	}
	else if (command(session, "BEGIN"))
	{
		bool		done = work_off(leased);

		if (!is_lost(session))
			command(session, done && dice % 25 != 2 ? "COMMIT" : "ROLLBACK");
	}
	PQclear(leased);
}

int
main(int argc, char **argv)
{
	for (int i = 1; i + 1 < argc; i += 2)
	{
		if (strcmp(argv[i], "--conninfo") == 0)
			conninfo = argv[i + 1];
		else if (strcmp(argv[i], "--subscription") == 0)
			subscription = argv[i + 1];
		else if (strcmp(argv[i], "--number") == 0)
			number = atoi(argv[i + 1]);
		else if (strcmp(argv[i], "--seed") == 0)
			seed = mix(strtoull(argv[i + 1], NULL, 10));
		else
			fail("what is %s?", argv[i]);
	}
	if (!conninfo || !subscription)
		fail("consumer --conninfo TEXT --subscription NAME --number N --seed N");
	signal(SIGTERM, end);
	signal(SIGINT, end);
	signal(SIGPIPE, SIG_IGN);
	session = connect_to(conninfo);
	while (!ending)
	{
		if (is_lost(session))
		{
			PQfinish(session);
			session = connect_to(conninfo);
		}
		take_some();
	}
	PQfinish(session);
	return 0;
}
