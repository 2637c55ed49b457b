/*
 * A producer of the fault harness: one session that enqueues in every kind of transaction, and keeps a ledger of what it was about to commit and what it was told.
 *
 *   producer --conninfo TEXT --ledger FILE --number N --seed N --mode mixed|bulk [--rate EVENTS_PER_SECOND] [--without NAME,…]
 *
 * Which transactions it makes is a function of seed and number; shapes and types that are to be left out become the plainest.  When the connection is lost it connects again and goes on; on SIGTERM it ends after the transaction it
 * is in, whose outcome it finds out if it was prepared.
 *
 * The ledger (checker.pm reads it), a line each; times are microseconds of the Unix clock:
 *   B TRANSACTION SHAPE
 *   E SERIAL TYPE KEY N ID DEDUP     an event was enqueued.  N: its number within its key, counted by whoever has the key's row locked; 0 and KEY -: no order.
 *                                    DEDUP: its dedup key, or -; then ID may be another event's.
 *   X SERIAL                         undone by a savepoint or an exception block
 *   W TRANSACTION TIME sync|async    COMMIT (or COMMIT PREPARED) is about to be sent. All lines so far are on disk.
 *   c | r | u TRANSACTION TIME       committed (async: acknowledged) | rolled back | unknown: the connection was lost at COMMIT
 *   L TIME, R TIME                   connection lost, and there again
 * Every payload is {"p": NUMBER, "s": SERIAL, "k": KEY, "n": N, "pad": …}.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>

#include "session.h"

#define SHARED_KEYS 20
#define MAX_EVENTS 1000

typedef enum Outcome
{
	COMMITTED = 'c', ROLLED_BACK = 'r', UNKNOWN = 'u'
} Outcome;

static const char *conninfo;
static int	number;
static uint64_t seed;
static bool is_bulk;
static const char *without = "";
static double rate = 100;
static int	ledger_fd;
static Buffer ledger;
static PGconn *session;
static long transaction,
			serial,
			dedup_serial;
static uint64_t dice;
static volatile sig_atomic_t ending;

static void
end(int signal_number)
{
	(void) signal_number;
	ending = 1;
}

/* 0 .. limit - 1 */
static int
throw(int limit)
{
	dice = mix(dice);
	return (int) (dice % (uint64_t) limit);
}

/* The ledger, as far as it is known; on disk, if it must not be lost. */
static void
write_ledger(bool sync)
{
	size_t		done = 0;

	while (done < ledger.length)
	{
		ssize_t		written = write(ledger_fd, ledger.data + done, ledger.length - done);

		if (written < 0 && errno != EINTR)
			fail("cannot write the ledger: %s", strerror(errno));
		if (written > 0)
			done += written;
	}
	ledger.length = 0;
	if (sync && fdatasync(ledger_fd) != 0)
		fail("cannot sync the ledger: %s", strerror(errno));
}

/* The connection is lost, or there was none. */
static void
connect_again(void)
{
	if (session)
	{
		appendf(&ledger, "L %lld\n", (long long) now());
		PQfinish(session);
	}
	session = connect_to(conninfo);
	appendf(&ledger, "R %lld\n", (long long) now());
}

static void
note_event(const char *type, const char *key, const char *n, const char *id, const char *dedup)
{
	appendf(&ledger, "E %ld %s %s %s %s %s\n", serial, type, key ? key : "-", n, id, dedup ? dedup : "-");
}

/* One event, under the lock of its key. */
static bool
enqueue(const char *type, const char *key)
{
	char		p[16],
				s[24],
				full_type[32];
	const char *values[] = {key, p, s, full_type};
	PGresult   *result;

	serial++;
	snprintf(p, sizeof(p), "%d", number);
	snprintf(s, sizeof(s), "%ld", serial);
	snprintf(full_type, sizeof(full_type), "fault.%s", type);
	result = ask(session, "WITH locked AS (UPDATE fault_key SET n = n + 1 WHERE key = $1 RETURNING n)"
				 " SELECT n, outbox.enqueue($4, jsonb_build_object('p', $2::text::int, 's', $3::bigint, 'k', $1, 'n', n, 'pad', repeat('x', 20 + ($3::bigint % 100)::int)),"
				 " key => $1, headers => jsonb_build_object('x-producer', $2::text)) FROM locked", 4, values);
	if (result)
		note_event(type, key, PQgetvalue(result, 0, 0), PQgetvalue(result, 0, 1), NULL);
	PQclear(result);
	return result != NULL;
}

/* Without a key: scheduled, or once per dedup key. */
static bool
enqueue_apart(const char *type, int delay, const char *dedup)
{
	char		p[16],
				s[24],
				full_type[32],
				milliseconds[16];
	const char *values[] = {full_type, p, s, delay ? milliseconds : NULL, dedup};
	PGresult   *result;

	serial++;
	snprintf(p, sizeof(p), "%d", number);
	snprintf(s, sizeof(s), "%ld", serial);
	snprintf(full_type, sizeof(full_type), "fault.%s", type);
	snprintf(milliseconds, sizeof(milliseconds), "%d", delay);
	result = ask(session, "SELECT outbox.enqueue($1, jsonb_build_object('p', $2::int, 's', $3::bigint, 'k', '', 'n', 0, 'pad', ''),"
				 " deliver_at => clock_timestamp() + $4::int * interval '1 ms', dedup_key => $5)", 5, values);
	if (result)
		note_event(type, NULL, "0", PQgetvalue(result, 0, 0), dedup);
	PQclear(result);
	return result != NULL;
}

/* An event without a key, from a cursor whose next row fails, in a savepoint: the event stays, whatever the cursor held. */
static bool
enqueue_from_cursor(const char *type)
{
	char		declare[512];
	PGresult   *result;

	serial++;
	snprintf(declare, sizeof(declare), "DECLARE two CURSOR FOR SELECT outbox.enqueue('fault.%s', jsonb_build_object('p', %d, 's', %ld::bigint, 'k', '', 'n', 1 / (2 - i) - 1, 'pad', ''))"
			 " FROM generate_series(1, 2) AS i", type, number, serial);
	if (!command(session, declare))
		return false;
	result = ask(session, "FETCH two", 0, NULL);
	if (result)
		note_event(type, NULL, "0", PQgetvalue(result, 0, 0), NULL);
	PQclear(result);
	if (!result || !command(session, "SAVEPOINT rest"))
		return false;
	PQclear(PQexec(session, "FETCH two"));	/* division by zero */
	return command(session, "ROLLBACK TO rest");
}

/* An event that a plpgsql exception block undoes. */
static bool
enqueue_in_vain(const char *type, const char *key)
{
	char		p[16],
				s[24],
				full_type[32];
	const char *values[] = {full_type, key, p, s};
	PGresult   *result;

	serial++;
	snprintf(p, sizeof(p), "%d", number);
	snprintf(s, sizeof(s), "%ld", serial);
	snprintf(full_type, sizeof(full_type), "fault.%s", type);
	result = ask(session, "SELECT fault_in_vain($1, $2, $3::int, $4::bigint)", 4, values);
	if (result)
	{
		note_event(type, key, "0", PQgetvalue(result, 0, 0), NULL);
		appendf(&ledger, "X %ld\n", serial);
	}
	PQclear(result);
	return result != NULL;
}

/* So many events of one key in one call. */
static bool
enqueue_many(const char *type, const char *key, int count)
{
	static Buffer events;
	char		many[16];
	const char *values[] = {key, many};
	PGresult   *result;
	long		n;
	const char *ids;

	snprintf(many, sizeof(many), "%d", count);
	result = ask(session, "UPDATE fault_key SET n = n + $2::int WHERE key = $1 RETURNING n", 2, values);
	if (!result)
		return false;
	n = atol(PQgetvalue(result, 0, 0)) - count;
	PQclear(result);

	events.length = 0;
	for (int i = 1; i <= count; i++)
		appendf(&events, "%s{\"type\": \"fault.%s\", \"key\": \"%s\", \"payload\": {\"p\": %d, \"s\": %ld, \"k\": \"%s\", \"n\": %ld, \"pad\": \"%.*s\"}}", i == 1 ? "[" : ", ",
				type, key, number, serial + i, key, n + i, (int) (20 + (serial + i) % 60), "................................................................................");
	append(&events, "]", 1);
	values[0] = events.data;
	result = ask(session, "SELECT outbox.enqueue_many($1::jsonb)", 1, values);
	if (!result)
	{
		serial += count;
		return false;
	}
	ids = PQgetvalue(result, 0, 0) + 1;
	for (int i = 1; i <= count; i++, ids += 37)
		appendf(&ledger, "E %ld %s %s %ld %.36s -\n", ++serial, type, key, n + i, ids);
	PQclear(result);
	return true;
}

/* Sleeps, but not when it is time to end. */
static void
hold(int milliseconds)
{
	int64_t		until = now() + milliseconds * 1000LL;

	while (!ending && now() < until)
		usleep(milliseconds > 20 ? 10000 : 1000);
}

/* After the connection was lost: is there still, and is its old backend gone, which might yet do what it was told? */
static bool
is_prepared(const char *gid, int old_backend)
{
	for (;;)
	{
		char		pid[16];
		const char *values[] = {gid, pid};
		PGresult   *result;
		bool		found,
					is_settled;

		snprintf(pid, sizeof(pid), "%d", old_backend);
		result = ask(session, "SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE gid = $1), NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $2::int AND application_name = current_setting('application_name') AND pid <> pg_backend_pid())", 2, values);
		if (!result)
		{
			if (is_lost(session))
				connect_again();
			continue;
		}
		found = PQgetvalue(result, 0, 0)[0] == 't';
		is_settled = PQgetvalue(result, 0, 1)[0] == 't';
		PQclear(result);
		if (is_settled)
			return found;
		usleep(5000);
	}
}

static void
about_to_commit(bool async)
{
	appendf(&ledger, "W %ld %lld %s\n", transaction, (long long) now(), async ? "async" : "sync");
	write_ledger(true);
}

static Outcome
commit(bool async)
{
	PGresult   *result;
	Outcome		outcome;

	about_to_commit(async);
	result = ask(session, "COMMIT", 0, NULL);
	if (result)
		outcome = strcmp(PQcmdStatus(result), "COMMIT") == 0 ? COMMITTED : ROLLED_BACK;
	else
		outcome = is_lost(session) ? UNKNOWN : ROLLED_BACK;
	PQclear(result);
	return outcome;
}

static Outcome
commit_prepared(bool decided)
{
	char		gid[64],
				prepare[128],
				finish[128];
	int			backend = PQbackendPID(session);
	bool		there;

	snprintf(gid, sizeof(gid), "fault %d %ld", number, transaction);
	snprintf(prepare, sizeof(prepare), "PREPARE TRANSACTION '%s'", gid);
	snprintf(finish, sizeof(finish), "%s PREPARED '%s'", decided ? "COMMIT" : "ROLLBACK", gid);
	write_ledger(true);
	there = command(session, prepare);
	if (!there && !is_lost(session))
		return ROLLED_BACK;
	if (!there)
	{
		connect_again();
		if (!is_prepared(gid, backend))
			return ROLLED_BACK;
	}
	hold(throw(10) == 0 ? 1000 + throw(3000) : throw(50));
	if (decided)
		about_to_commit(false);
	for (;;)
	{
		backend = PQbackendPID(session);
		if (!is_lost(session) && command(session, finish))
			break;
		if (is_lost(session))
		{
			connect_again();
			if (!is_prepared(gid, backend))
				break;
		}
		else
			usleep(10000);
	}
	return decided ? COMMITTED : ROLLED_BACK;
}

static bool
is_left_out(const char *name)
{
	size_t		length = strlen(name);

	for (const char *at = without; *at; at += strcspn(at, ","), at += *at == ',')
		if (strcspn(at, ",") == length && strncmp(at, name, length) == 0)
			return true;
	return false;
}

static void
name_key(char *key, size_t size, const char *type, bool is_private)
{
	if (is_private)
		snprintf(key, size, "%s-p%d-%d", type, number, throw(3));
	else
		snprintf(key, size, "%s-%d", type, throw(SHARED_KEYS));
}

static bool
enqueue_some(const char *type, bool is_private)
{
	char		key[64];

	name_key(key, sizeof(key), type, is_private);
	return enqueue(type, key) && (throw(3) != 0 || enqueue(type, key));
}

/* What is in the transaction. */
static bool
fill(const char *shape, const char *type, bool is_private)
{
	char		key[64],
				dedup[64];

	name_key(key, sizeof(key), type, is_private);
	if (strcmp(shape, "savepoint") == 0)
	{
		long		from;

		if (!enqueue(type, key) || !command(session, "SAVEPOINT one"))
			return false;
		from = serial;
		if (!enqueue(type, key) || !command(session, "SAVEPOINT two") || !enqueue(type, key))
			return false;
		if (throw(2) == 0)
		{
			if (!command(session, "ROLLBACK TO two"))
				return false;
			appendf(&ledger, "X %ld\n", serial);
			return throw(2) == 0 || enqueue(type, key);
		}
		if (throw(2) == 0 && !command(session, "RELEASE two"))
			return false;
		if (!command(session, "ROLLBACK TO one"))
			return false;
		while (from++ < serial)
			appendf(&ledger, "X %ld\n", from);
		return throw(2) == 0 || enqueue(type, key);
	}
	if (strcmp(shape, "exception") == 0)
		return enqueue_in_vain(type, key) && enqueue(type, key) && enqueue_in_vain(type, key);
	if (strcmp(shape, "cursor") == 0)
	{
		if (!enqueue_from_cursor(type))
			return false;
		hold(throw(8) == 0 ? 200 + throw(1000) : throw(20));
		return true;
	}
	if (strcmp(shape, "scheduled") == 0)
		return enqueue_apart(type, 50 + throw(3000), NULL);
	if (strcmp(shape, "dedup") == 0)
	{
		snprintf(dedup, sizeof(dedup), "%s-%ld", type, ++dedup_serial);
		return enqueue_apart(type, 0, dedup);
	}
	if (strcmp(shape, "many") == 0)
		return enqueue_many(type, key, is_bulk ? 100 + throw(200) : 2 + throw(30));
	return enqueue_some(type, is_private);
}

/* One transaction, from BEGIN to what became of it. */
static void
transact(void)
{
	static const char *const shapes[] = {"plain", "plain", "plain", "plain", "plain", "plain", "rollback", "savepoint", "savepoint", "exception",
		"cursor", "prepared", "prepared", "scheduled", "dedup", "many", "many"};
	static const char *const types[] = {"one", "one", "one", "one", "one", "one", "bulk", "effect", "effect", "pull"};
	const char *shape,
			   *type;
	bool		async,
				repeatable,
				is_private;
	Outcome		outcome;

	transaction++;
	dice = mix(seed ^ mix((uint64_t) number << 40 ^ (uint64_t) transaction));
	if (is_bulk)
	{
		type = "bulk";
		shape = throw(12) == 0 ? "rollback" : throw(40) == 0 ? "prepared" : "many";
	}
	else
	{
		type = types[throw(10)];
		shape = throw(300) == 0 ? "long" : shapes[throw(17)];
	}
	if (is_left_out(type))
		type = "one";
	if (is_left_out(shape))
		shape = "plain";
	async = throw(4) == 0;
	repeatable = throw(8) == 0;
	is_private = strcmp(shape, "prepared") == 0 || strcmp(shape, "long") == 0;

	appendf(&ledger, "B %ld %s\n", transaction, shape);
	if (!command(session, repeatable ? "BEGIN ISOLATION LEVEL REPEATABLE READ" : "BEGIN"))
		outcome = ROLLED_BACK;
	else
	{
		bool		filled = !async || command(session, "SET LOCAL synchronous_commit = off");

		if (filled && repeatable)	/* its snapshot is older than what it enqueues */
		{
			filled = command(session, "SELECT 1");
			hold(throw(30));
		}
		if (filled && strcmp(shape, "rollback") == 0)
			filled = fill(is_bulk ? "many" : "plain", type, false);
		else if (filled)
			filled = fill(shape, type, is_private);
		if (filled && strcmp(shape, "long") == 0)
			hold(1000 + throw(6000));

		if (filled && strcmp(shape, "prepared") == 0)
			outcome = commit_prepared(throw(3) != 0);
		else if (filled && strcmp(shape, "rollback") != 0)
			outcome = commit(async);
		else
		{
			outcome = ROLLED_BACK;
			if (!is_lost(session))
				command(session, "ROLLBACK");
		}
	}
	appendf(&ledger, "%c %ld %lld\n", outcome, transaction, (long long) now());
	if (is_lost(session))
		connect_again();
	write_ledger(false);
}

int
main(int argc, char **argv)
{
	const char *ledger_file = NULL;
	int64_t		began;

	for (int i = 1; i + 1 < argc; i += 2)
	{
		if (strcmp(argv[i], "--conninfo") == 0)
			conninfo = argv[i + 1];
		else if (strcmp(argv[i], "--ledger") == 0)
			ledger_file = argv[i + 1];
		else if (strcmp(argv[i], "--number") == 0)
			number = atoi(argv[i + 1]);
		else if (strcmp(argv[i], "--seed") == 0)
			seed = mix(strtoull(argv[i + 1], NULL, 10));
		else if (strcmp(argv[i], "--mode") == 0)
			is_bulk = strcmp(argv[i + 1], "bulk") == 0;
		else if (strcmp(argv[i], "--rate") == 0)
			rate = atof(argv[i + 1]);
		else if (strcmp(argv[i], "--without") == 0)
			without = argv[i + 1];
		else
			fail("what is %s?", argv[i]);
	}
	if (!conninfo || !ledger_file || number <= 0)
		fail("producer --conninfo TEXT --ledger FILE --number N --seed N --mode mixed|bulk [--rate N] [--without NAME,...]");
	ledger_fd = open(ledger_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	if (ledger_fd < 0)
		fail("cannot open %s: %s", ledger_file, strerror(errno));
	signal(SIGTERM, end);
	signal(SIGINT, end);
	signal(SIGPIPE, SIG_IGN);

	connect_again();
	began = now();
	while (!ending)
	{
		long		before = serial;

		transact();
		/* as many as it is due, without making up for the time in which there was no server */
		began += (int64_t) ((double) (serial - before) * 1e6 / rate);
		if (began < now())
			began = now();
		while (!ending && now() < began)
			usleep(1000);
	}
	PQfinish(session);
	return 0;
}
