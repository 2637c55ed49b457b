/*
 * Rounds of maintenance: the ring turns, and what has expired is cleared away, a little at a time.
 *
 * Whoever does a round holds one lock until the end of the transaction (see ring.c).  Rows are deleted in batches, those that somebody has locked later;
 * tables that are only appended to are emptied whole.  Never waits: what is busy now is done in a later round.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "bell.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "event_log.h"
#include "executor/spi.h"
#include "expiry.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "ring.h"
#include "segment.h"
#include "settings.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "table.h"
#include "upkeep.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "vault.h"

#define ATTEMPT_PARTS 4

/* Rows that one round deletes of a kind; the rest waits for the next rounds. */
#define DELETE_AT_ONCE "1000"
#define RENEW_AT_ONCE 500

/* Microseconds for each kind of row that expires by time: what maintenance takes from a worker's deliveries, and from a call's time. */
#define WORKER_BUDGET 10000
#define CALLER_BUDGET 1000000

/* Rows are looked for that often, and when a segment was retired; milliseconds.  A worker's other rounds have only segments in mind. */
#define THOROUGH_INTERVAL 20000

/* ---- a round, for those that take part in it ---- */

OutboxMaintenance *
outbox_upkeep_report(OutboxRound *round, const char *action, int segment, int64 count, const char *detail)
{
	MemoryContext old = MemoryContextSwitchTo(round->context);
	OutboxMaintenance *entry = palloc(sizeof(OutboxMaintenance));

	entry->action = action;
	entry->segment = segment;
	entry->count = count;
	entry->detail = detail != NULL ? pstrdup(detail) : NULL;
	entry->more = false;
	round->done = lappend(round->done, entry);
	MemoryContextSwitchTo(old);
	return entry;
}

bool
outbox_upkeep_older(OutboxRound *round, TimestampTz at, int seconds)
{
	return at <= round->now - seconds * USECS_PER_SEC;
}

uint64
outbox_upkeep_execute(const char *statement, int n, Oid *types, Datum *values)
{
	int			result = SPI_execute_with_args(statement, n, types, values, NULL, false, 0);

	if (result < 0)
		elog(ERROR, "could not outbox_upkeep_execute \"%s\": %s", statement, SPI_result_code_string(result));
	return SPI_processed;
}

/* ---- what else has expired, or is to be renewed ---- */

/* Rows that somebody has locked are left for another time. */
static const char delete_ownerless[] =
"DELETE FROM outbox.delivery WHERE ctid = ANY (ARRAY(SELECT d.ctid FROM outbox.delivery AS d"
" WHERE NOT EXISTS (SELECT FROM outbox.subscription AS s WHERE s.id = d.subscription_id) LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/* While its event is in the log the row must stay: without it the event would seem to be delivered. */
static const char delete_expired[] =
"DELETE FROM outbox.delivery WHERE ctid = ANY (ARRAY(SELECT d.ctid FROM outbox.delivery AS d"
" WHERE d.status IN ('dead', 'discarded') AND d.ended_at <= $1 AND NOT EXISTS (SELECT FROM outbox.event AS e WHERE e.id = coalesce(d.log_id, d.event_id))"
" LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/* While one of its events can be asked about the gap must stay, likewise. */
static const char delete_gaps[] =
"DELETE FROM outbox.gap WHERE ctid = ANY (ARRAY(SELECT g.ctid FROM outbox.gap AS g"
" WHERE g.at <= $1 AND NOT EXISTS (SELECT FROM outbox.event AS e WHERE g.to_id IS NULL OR e.id <= g.to_id)"
" AND NOT EXISTS (SELECT FROM outbox.kept_event AS k WHERE g.to_id IS NULL OR k.id <= g.to_id) LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

static const char delete_kept[] =
"DELETE FROM outbox.kept_event WHERE ctid = ANY (ARRAY(SELECT k.ctid FROM outbox.kept_event AS k"
" WHERE NOT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.event_id = coalesce(k.scheduled_id, k.id)) LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/* Earlier matching rules that apply to no event of the log any more. */
static const char delete_matches[] =
"DELETE FROM outbox.subscription_match WHERE ctid = ANY (ARRAY(SELECT m.ctid FROM outbox.subscription_match AS m"
" WHERE NOT EXISTS (SELECT FROM outbox.event AS e WHERE e.id < outbox._lowest_id(m.until_clock + 1)) LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/* Secrets that have stopped signing. */
static const char delete_secrets[] =
"DELETE FROM outbox.secret WHERE ctid = ANY (ARRAY(SELECT k.ctid FROM outbox.secret AS k"
" WHERE k.expires_at <= pg_catalog.clock_timestamp() LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/* Keys of dedup that count no more. */
static const char expire_dedup[] =
"DELETE FROM outbox.dedup WHERE ctid = ANY (ARRAY(SELECT d.ctid FROM outbox.dedup AS d"
" WHERE d.at <= $1 ORDER BY d.at LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/* Scheduled events that were cancelled are remembered as long as others stay readable … */
static const char expire_cancelled[] =
"DELETE FROM outbox.unscheduled WHERE ctid = ANY (ARRAY(SELECT u.ctid FROM outbox.unscheduled AS u"
" WHERE u.log_id IS NULL AND u.at <= $1 ORDER BY u.at LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/* … and those that were moved, as long as they are there. */
static const char expire_moved[] =
"DELETE FROM outbox.unscheduled WHERE ctid = ANY (ARRAY(SELECT u.ctid FROM outbox.unscheduled AS u"
" WHERE u.log_id < coalesce((SELECT e.id FROM outbox.event AS e ORDER BY e.id LIMIT 1), 'ffffffff-ffff-ffff-ffff-ffffffffffff')"
" AND NOT EXISTS (SELECT FROM outbox.kept_event AS k WHERE k.id = u.log_id)"
" ORDER BY u.log_id LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/*
 * Can the log be read without waiting?  A query of it locks every segment and every index.  The locks stay until the transaction ends, as the query's would.
 */
static bool
lock_log_at_once(OutboxRound *round)
{
	for (int i = -1; i < OUTBOX_SEGMENTS; i++)
	{
		Relation	heap = outbox_table_open(i < 0 ? get_relname_relid("event", round->catalog.schema) : round->catalog.segments[i]);
		List	   *indexes;
		ListCell   *cell;
		bool		locked = true;

		if (heap == NULL)
			return false;
		indexes = RelationGetIndexList(heap);
		table_close(heap, NoLock);
		foreach(cell, indexes)
			locked = locked && ConditionalLockRelationOid(lfirst_oid(cell), AccessShareLock);
		list_free(indexes);
		if (!locked)
			return false;
	}
	return true;
}

static void
delete_rows(OutboxRound *round, const char *statement, const char *what)
{
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(round->now - outbox_dead_letter_retention * USECS_PER_SEC)};
	uint64		deleted = outbox_upkeep_execute(statement, statement == delete_expired || statement == delete_gaps ? 1 : 0, types, values);

	if (deleted > 0)
		outbox_upkeep_report(round, "deleted", -1, deleted, what);
}

static void
renew_secrets(OutboxRound *round)
{
	uint64		renewed = outbox_vault_renew(RENEW_AT_ONCE);

	if (renewed > 0)
		outbox_upkeep_report(round, "encrypted", -1, renewed, "secrets and headers that were plain, or under an older key");
}

/* In small batches, as many as the budget allows. */
static void
expire_rows(OutboxRound *round, const char *statement, int seconds, const char *what)
{
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(round->now - seconds * USECS_PER_SEC)};
	TimestampTz began_at = GetCurrentTimestamp();
	uint64		expired = 0;
	uint64		batch;
	bool		more;

	do
	{
		CHECK_FOR_INTERRUPTS();
		batch = outbox_upkeep_execute(statement, statement == expire_moved ? 0 : 1, types, values);
		expired += batch;
		more = batch == atoi(DELETE_AT_ONCE);
	} while (more && GetCurrentTimestamp() - began_at < round->budget);
	if (expired > 0)
		outbox_upkeep_report(round, "expired", -1, expired, what)->more = more;
}

/* Time in slices of half the retention: the part after the current one was last written at least one retention ago. */
int
outbox_upkeep_attempt_part(TimestampTz at)
{
	int64		slice = Max(outbox_attempt_retention / 2, 1);

	return at / USECS_PER_SEC / slice % ATTEMPT_PARTS;
}

/*
 * When the part was last written to: as a rule its last page tells, since it is only appended to.  False if there is no row at all.
 */
static bool
newest_attempt(Relation part, TimestampTz *at)
{
	BlockNumber last = RelationGetNumberOfBlocks(part) - 1;

	for (int try = 0; try < 2; try++)
	{
		bool		isnull;
		Datum		value;

		outbox_upkeep_execute(psprintf("SELECT pg_catalog.max(a.at) FROM ONLY %s AS a WHERE a.ctid >= '(%u,0)'", outbox_table_name(part), try == 0 ? last : 0), 0, NULL, NULL);
		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
		*at = DatumGetTimestampTz(value);
		if (!isnull)
			return true;
	}
	return false;
}

/* Looks at the rows' own times too: the setting may have changed, and with it which part is whose. */
static bool
attempts_expired(OutboxRound *round, Relation part)
{
	TimestampTz newest;

	if (RelationGetNumberOfBlocks(part) == 0)
		return false;
	return !newest_attempt(part, &newest) || outbox_upkeep_older(round, newest, outbox_attempt_retention);
}

static void
empty_attempts(OutboxRound *round, int number)
{
	Oid			oid = get_relname_relid(psprintf("attempt_log_%d", number), round->catalog.schema);
	Relation	part = OidIsValid(oid) ? outbox_table_open(oid) : NULL;
	bool		expired;
	List	   *locks;

	if (part == NULL)
		return;
	expired = attempts_expired(round, part);
	table_close(part, AccessShareLock);
	if (!expired || !outbox_table_lock(oid, &locks))
		return;

	/* somebody may have written to it since */
	part = table_open(oid, NoLock);
	if (attempts_expired(round, part))
	{
		char	   *name = outbox_table_name(part);
		int64		bytes = outbox_table_bytes(part);

		table_close(part, NoLock);
		outbox_table_truncate(name);
		outbox_upkeep_report(round, "emptied", number, bytes, "attempt log");
	}
	else
	{
		table_close(part, NoLock);
		outbox_table_unlock(locks);
	}
}

/* ---- the whole ---- */

static void
refuse_unfit_transaction(void)
{
	PreventCommandDuringRecovery("outbox.maintain()");
	PreventCommandIfReadOnly("outbox.maintain()");
	PreventCommandIfParallelMode("outbox.maintain()");
	PreventInTransactionBlock(true, "outbox.maintain()");

	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("outbox.maintain() needs isolation level READ COMMITTED"),
				 errdetail("What it proves must be true now, not when the transaction began."),
				 errhint("Call it in a session with default_transaction_isolation = 'read committed'.")));

	/* A ShareLock does not conflict with the lock of an event enqueued by the same transaction: sealing would be wrong. */
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("outbox.maintain() cannot run in a transaction that has already written"),
				 errdetail("It could not tell the locks of this transaction from nobody's."),
				 errhint("Call it as a statement of its own.")));
}

/* What the receiving side remembers. */
static void
expire(OutboxRound *round, OutboxExpiring what, const char *detail)
{
	bool		more;
	uint64		deleted = outbox_expiry_round(round->database, what, round->now, round->budget, &more);

	if (deleted > 0)
		outbox_upkeep_report(round, "expired", -1, deleted, detail)->more = more;
}

static void
run_round(OutboxRound *round)
{
	outbox_ring_turn(round);

	if (round->thorough)
	{
		bool		readable = lock_log_at_once(round);

		delete_rows(round, delete_ownerless, "deliveries whose subscription is gone");
		if (readable)
		{
			delete_rows(round, delete_expired, "dead letters past outbox.dead_letter_retention");
			delete_rows(round, delete_gaps, "gaps past outbox.dead_letter_retention");
		}
		delete_rows(round, delete_kept, "kept events that no delivery points to any more");
		if (readable)
			delete_rows(round, delete_matches, "matching rules that no event is old enough for");
		delete_rows(round, delete_secrets, "secrets that have expired");
		renew_secrets(round);
		if (readable)
			expire_rows(round, expire_moved, 0, "records of scheduled events that are no longer in the log");
		expire_rows(round, expire_cancelled, outbox_event_retention, "records of scheduled events that were cancelled");
		outbox_expiry_write_refusals(round->database);
	}
	expire_rows(round, expire_dedup, outbox_dedup_window, "keys past outbox.dedup_window");
	expire(round, OUTBOX_EXPIRING_MESSAGES, "message ids past their retention");
	expire(round, OUTBOX_EXPIRING_REQUESTS, "idempotency keys past outbox.request_retention");

	for (int i = 0; i < ATTEMPT_PARTS; i++)
		if (i != outbox_upkeep_attempt_part(round->now))
			empty_attempts(round, i);

	LWLockAcquire(&round->database->lock, LW_EXCLUSIVE);
	round->database->status.maintained_at = round->now;
	LWLockRelease(&round->database->lock);
}

/* Runs as the owner of the log, whom the caller need not be, and with a safe search path. */
static List *
maintain(bool thorough, int64 budget)
{
	OutboxRound		round = {.catalog = *outbox_catalog_required(), .thorough = thorough, .budget = budget, .context = CurrentMemoryContext};
	int			nest_level;
	Oid			user;
	int			security;

	refuse_unfit_transaction();
	round.database = outbox_bell_database(round.catalog.extension);
	round.now = GetCurrentTimestamp();
	outbox_log_floor(round.database);
	if (!ConditionalLockDatabaseObject(ExtensionRelationId, round.catalog.extension, OUTBOX_LOCK_RING, ExclusiveLock))
	{
		outbox_upkeep_report(&round, "busy", -1, 0, "another round of maintenance is under way");
		return round.done;
	}

	nest_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	/* The tables read for the proof are not locked beforehand: a segment must not stay locked because of one of them. */
	(void) set_config_option("lock_timeout", "1s", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(outbox_segment_owner(round.catalog.segments[0]), security | SECURITY_LOCAL_USERID_CHANGE);
	SPI_connect();

	run_round(&round);

	SPI_finish();
	SetUserIdAndSecContext(user, security);
	AtEOXact_GUC(false, nest_level);
	return round.done;
}

List *
outbox_upkeep(bool thorough)
{
	static TimestampTz thorough_at = 0;
	TimestampTz now = GetCurrentTimestamp();
	List	   *done;
	ListCell   *cell;

	thorough = thorough || now < thorough_at || TimestampDifferenceExceeds(thorough_at, now, THOROUGH_INTERVAL);
	done = maintain(thorough, WORKER_BUDGET);
	if (thorough)
		thorough_at = now;
	foreach(cell, done)
	{
		if (thorough && ((OutboxMaintenance *) lfirst(cell))->more)
			thorough_at = 0;
	}
	return done;
}

/* ---- SQL ---- */

/* maintain() → table (action text, segment int, count bigint, detail text): one round; what it did. */
PG_FUNCTION_INFO_V1(outbox_maintain);
Datum
outbox_maintain(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	List	   *done = maintain(true, CALLER_BUDGET);
	ListCell   *cell;

	InitMaterializedSRF(fcinfo, 0);
	foreach(cell, done)
	{
		OutboxMaintenance *entry = lfirst(cell);
		Datum		values[4] = {
			CStringGetTextDatum(entry->action),
			Int32GetDatum(entry->segment),
			Int64GetDatum(entry->count),
			entry->detail != NULL ? CStringGetTextDatum(entry->detail) : (Datum) 0
		};
		bool		nulls[4] = {false, entry->segment < 0, false, entry->detail == NULL};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
