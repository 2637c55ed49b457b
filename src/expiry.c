/*
 * Expiry: what the receiving side remembers (accepted message ids, idempotency keys) is deleted when it is old enough.
 *
 * Rows lie in a table about in the order of their age.  A hand goes round the table, a few blocks at a time; it finds what has expired in one place, and the pages that it
 * empties there are used again for new rows.  So no index by time is needed, which every accept() would have to write to.  A round of the hand takes a few hours at most,
 * in which old rows stay longer than they must; where it finds something it goes on at once.
 *
 * Batches are small, because whoever accepts an id that is just being deleted waits for the transaction to end.
 */
#include "postgres.h"

#include "access/table.h"
#include "bell.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "expiry.h"
#include "miscadmin.h"
#include "settings.h"
#include "storage/bufmgr.h"
#include "storage/itemptr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

/* Blocks looked at by one statement: with a hundred rows in each, its batch is of some 1600. */
#define BLOCKS_AT_ONCE 16

/* A batch is over after so many rows; the rest comes soon. */
#define ROWS_AT_ONCE 1000

/*
 * Blocks that a batch looks at in vain: a part of the table, but at least so many.  A round makes a batch even if its time is short: with one every ten seconds
 * the hand is round in three hours.
 */
#define PART_AT_ONCE 1000
#define LEAST_AT_ONCE 256

/* $1, $2: from and up to this row; $3: now; $4: retention.  Rows that somebody has locked are left for another time. */
static const char delete_messages[] =
"WITH gone AS (DELETE FROM outbox.inbox AS i WHERE i.ctid = ANY (ARRAY("
"        SELECT o.ctid FROM outbox.inbox AS o LEFT JOIN outbox.consumer AS c ON c.name = o.consumer"
"         WHERE o.ctid >= $1 AND o.ctid < $2 AND o.accepted_at <= $3 - COALESCE(c.retention, $4) FOR UPDATE OF o SKIP LOCKED))"
"    RETURNING i.consumer),"
" counted AS (INSERT INTO outbox.inbox_count AS n (consumer, expired, duplicates)"
"    SELECT g.consumer, count(*), 0 FROM gone AS g GROUP BY g.consumer"
"    ON CONFLICT (consumer) DO UPDATE SET expired = n.expired + EXCLUDED.expired)"
" SELECT count(*) FROM gone AS g";

static const char delete_requests[] =
"WITH gone AS (DELETE FROM outbox.idempotency_key AS k WHERE k.ctid = ANY (ARRAY("
"        SELECT o.ctid FROM outbox.idempotency_key AS o"
"         WHERE o.ctid >= $1 AND o.ctid < $2 AND COALESCE(o.finished_at, o.takeover_at) <= $3 - $4 FOR UPDATE OF o SKIP LOCKED))"
"    RETURNING 1)"
" SELECT count(*) FROM gone AS g";

static const char write_refusals[] =
"INSERT INTO outbox.inbox_count AS n (consumer, expired, duplicates) VALUES ($1, 0, $2)"
" ON CONFLICT (consumer) DO UPDATE SET duplicates = n.duplicates + EXCLUDED.duplicates";

static struct
{
	const char *statement;
	const char *table;
	int		   *retention;		/* s */
	SPIPlanPtr	plan;			/* made at the first use */
}			kinds[] = {
	[OUTBOX_EXPIRING_MESSAGES] = {delete_messages, "inbox", &outbox_inbox_retention},
	[OUTBOX_EXPIRING_REQUESTS] = {delete_requests, "idempotency_key", &outbox_request_retention}
};

static SPIPlanPtr
plan_of(OutboxExpiring what, int n, Oid *types)
{
	if (kinds[what].plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(kinds[what].statement, n, types);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare \"%s\": %s", kinds[what].statement, SPI_result_code_string(SPI_result));
		kinds[what].plan = plan;
	}
	return kinds[what].plan;
}

static void
check_result(int result)
{
	if (result < 0)
		elog(ERROR, "could not clear away what has expired: %s", SPI_result_code_string(result));
}

/* Deletes what has expired in these blocks; returns how many rows that were. */
static uint64
sweep(OutboxExpiring what, BlockNumber from, BlockNumber to, TimestampTz now)
{
	ItemPointerData first = {0};
	ItemPointerData last = {0};
	Interval	retention = {.time = *kinds[what].retention * USECS_PER_SEC};
	Oid			types[] = {TIDOID, TIDOID, TIMESTAMPTZOID, INTERVALOID};
	Datum		values[] = {PointerGetDatum(&first), PointerGetDatum(&last), TimestampTzGetDatum(now), IntervalPGetDatum(&retention)};
	bool		isnull;
	uint64		deleted;

	ItemPointerSet(&first, from, 0);
	ItemPointerSet(&last, to, 0);
	check_result(SPI_execute_plan(plan_of(what, lengthof(types), types), values, NULL, false, 0));
	deleted = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return deleted;
}

/* The size of the table, or 0 when it cannot be locked at once. */
static BlockNumber
blocks_of(OutboxExpiring what)
{
	Oid			oid = get_relname_relid(kinds[what].table, outbox_catalog_required()->schema);
	Relation	table;
	BlockNumber blocks;

	if (!OidIsValid(oid) || !ConditionalLockRelationOid(oid, RowExclusiveLock))
		return 0;
	table = table_open(oid, NoLock);
	blocks = RelationGetNumberOfBlocks(table);
	table_close(table, NoLock);
	return blocks;
}

/* One batch: the hand goes on until it has deleted enough, or looked at enough in vain.  True if it stopped because it had deleted enough. */
static bool
batch(OutboxExpiring what, uint32 *hand, BlockNumber blocks, BlockNumber *left, TimestampTz now, uint64 *deleted)
{
	BlockNumber in_vain = Max(LEAST_AT_ONCE, blocks / PART_AT_ONCE);
	uint64		here = 0;

	while (here < ROWS_AT_ONCE && in_vain > 0 && *left > 0)
	{
		BlockNumber from = *hand < blocks ? *hand : 0;
		BlockNumber to = Min(from + BLOCKS_AT_ONCE, blocks);
		uint64		swept;

		CHECK_FOR_INTERRUPTS();
		swept = sweep(what, from, to, now);
		*hand = to;
		*left -= Min(*left, to - from);
		if (swept == 0)
			in_vain -= Min(in_vain, to - from);
		here += swept;
	}
	*deleted += here;
	return here >= ROWS_AT_ONCE && *left > 0;
}

uint64
outbox_expiry_round(OutboxDatabase *database, OutboxExpiring what, TimestampTz now, int64 budget, bool *more)
{
	BlockNumber blocks = blocks_of(what);
	BlockNumber left = blocks;	/* once round is enough */
	TimestampTz began_at = GetCurrentTimestamp();
	uint64		deleted = 0;

	do
	{
		*more = batch(what, &database->expiry_hands[what], blocks, &left, now, &deleted);
	} while (left > 0 && GetCurrentTimestamp() - began_at < budget);
	return deleted;
}

void
outbox_expiry_write_refusals(OutboxDatabase *database)
{
	for (int i = 0; i < OUTBOX_REFUSALS; i++)
	{
		OutboxRefusals *place = &database->refusals[i];
		Oid			types[] = {TEXTOID, INT8OID};
		Datum		values[2];
		uint64		count;

		if (pg_atomic_read_u64(&place->consumer) == 0 || pg_atomic_read_u64(&place->count) == 0)
			continue;
		pg_read_barrier();
		count = pg_atomic_exchange_u64(&place->count, 0);
		values[0] = CStringGetTextDatum(place->name);
		values[1] = Int64GetDatum((int64) count);
		check_result(SPI_execute_with_args(write_refusals, lengthof(types), types, values, NULL, false, 0));
	}
}
