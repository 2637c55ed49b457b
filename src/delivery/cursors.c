/*
 * Cursors, and the ticks they refer to.
 *
 * Rows are appended, never updated, to one of two pairs of tables, in turn: a full state begins the next pair, and then the other pair is emptied.  So a snapshot that someone holds
 * open has nothing to keep alive.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

#include "cursors.h"
#include "table.h"
#include "statement.h"
#include "writer.h"

/* A pair of tables is left for the other one after this many cursor rows. */
#ifdef OUTBOX_FAULTS
#define CURSOR_ROWS 100
#else
#define CURSOR_ROWS 20000
#endif

#define ROWS_AT_ONCE 100

/* A row to be written. */
typedef struct CursorRow
{
	int64		seq;
	int64		epoch;
	int32		subscription;
	bool		at_head;
	int64		base;
	int64		upper;
	bool		partial;
	pg_uuid_t	after;
	uint64		offset;
} CursorRow;

static CursorRow *rows = NULL;	/* in the memory of the transaction that is to write them */
static int	n_rows = 0;
static int	room = 0;

static const char *const table_names[2][2] = {{"cursor_0", "tick_0"}, {"cursor_1", "tick_1"}};
static int	pair = 0;			/* the pair in use */
static bool old_pair_full = true;	/* the other pair may hold rows */
static int64 cursor_rows = 0;	/* in the pair in use */
static int64 next_seq = 1;
static uint32 generation = 1;	/* of tick rows: raised when what was written before does not count any more */

static OutboxStatement insert_tick[2] = {
	{"INSERT INTO outbox.tick_0 (epoch, tick, snapshot, next, clock, \"offset\", at) VALUES ($1, $2, $3, $4, $5, $6, $7)"
		" ON CONFLICT (epoch, tick) DO NOTHING",
	7, {INT8OID, INT8OID, PG_SNAPSHOTOID, XID8OID, INT8OID, INT8OID, TIMESTAMPTZOID}},
	{"INSERT INTO outbox.tick_1 (epoch, tick, snapshot, next, clock, \"offset\", at) VALUES ($1, $2, $3, $4, $5, $6, $7)"
		" ON CONFLICT (epoch, tick) DO NOTHING",
	7, {INT8OID, INT8OID, PG_SNAPSHOTOID, XID8OID, INT8OID, INT8OID, TIMESTAMPTZOID}}
};

static OutboxStatement select_cursors = {
	"SELECT DISTINCT ON (c.subscription_id) c.subscription_id, c.at_head, c.base, c.tick, c.after, c.\"offset\""
	"  FROM outbox.cursor c WHERE c.epoch = $1 ORDER BY c.subscription_id, c.seq DESC",
	1, {INT8OID}
};

static OutboxStatement count_cursors[2] = {
	{"SELECT pg_catalog.count(*) FROM outbox.cursor_0", 0, {0}},
	{"SELECT pg_catalog.count(*) FROM outbox.cursor_1", 0, {0}}
};

static OutboxStatement select_newest = {
	"SELECT c.seq, c.tableoid = 'outbox.cursor_1'::pg_catalog.regclass FROM outbox.cursor c ORDER BY c.seq DESC LIMIT 1", 0, {0}
};

static OutboxStatement select_restored = {
	"SELECT c.epoch FROM outbox.cursor c WHERE c.epoch <> $1 ORDER BY c.seq DESC LIMIT 1", 1, {INT8OID}
};

static OutboxStatement select_tick = {
	"SELECT t.snapshot, t.next, t.clock, t.\"offset\", t.at FROM outbox.tick t WHERE t.epoch = $1 AND t.tick = $2",
	2, {INT8OID, INT8OID}
};

/* ---- writing ---- */

static void
write_tick(int64 epoch, OutboxTick *tick)
{
	Datum		values[7];

	if (tick->snapshot == NULL || tick->number == 0 || tick->persisted == generation)
		return;
	values[0] = Int64GetDatum(epoch);
	values[1] = Int64GetDatum((int64) tick->number);
	values[2] = outbox_snapshot_to_datum(tick->snapshot);
	values[3] = FullTransactionIdGetDatum(FullTransactionIdFromU64(tick->snapshot->next));
	values[4] = Int64GetDatum((int64) tick->snapshot->clock);
	values[5] = Int64GetDatum((int64) tick->offset);
	values[6] = TimestampTzGetDatum(tick->at);
	outbox_statement_run(&insert_tick[pair], values, NULL);
	tick->persisted = generation;
}

void
outbox_cursors_put(int64 epoch, int32 subscription, bool at_head, const OutboxPosition *position, uint64 offset)
{
	CursorRow  *row;

	if (n_rows == room)
	{
		room = room == 0 ? ROWS_AT_ONCE : room * 2;
		rows = rows == NULL ? palloc(room * sizeof(CursorRow)) : repalloc(rows, room * sizeof(CursorRow));
	}
	row = &rows[n_rows++];
	*row = (CursorRow) {.seq = next_seq++, .epoch = epoch, .subscription = subscription, .at_head = at_head, .offset = offset};
	if (at_head)
		return;
	if (position->restored != 0)
		row->epoch = position->restored;
	write_tick(row->epoch, position->base);
	write_tick(row->epoch, position->upper);
	row->base = (int64) position->base->number;
	row->upper = (int64) position->upper->number;
	row->partial = position->partial;
	row->after = position->after;
}

#define CURSOR_COLUMNS 9		/* what follows is a DBA's */

static void
fill_slot(TupleTableSlot *slot, const CursorRow *row, TimestampTz now)
{
	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
	memset(slot->tts_isnull, false, CURSOR_COLUMNS * sizeof(bool));
	slot->tts_values[0] = Int64GetDatum(row->seq);
	slot->tts_values[1] = Int64GetDatum(row->epoch);
	slot->tts_values[2] = Int32GetDatum(row->subscription);
	slot->tts_values[3] = BoolGetDatum(row->at_head);
	slot->tts_values[4] = Int64GetDatum(row->base);
	slot->tts_values[5] = Int64GetDatum(row->upper);
	slot->tts_values[6] = UUIDPGetDatum(&row->after);
	slot->tts_isnull[4] = slot->tts_isnull[5] = row->at_head;
	slot->tts_isnull[6] = !row->partial;
	slot->tts_values[7] = Int64GetDatum((int64) row->offset);
	slot->tts_values[8] = TimestampTzGetDatum(now);
	ExecStoreVirtualTuple(slot);
}

void
outbox_cursors_write(const OutboxCatalog *catalog)
{
	static OutboxWriter *kept[2];
	Relation	table = table_open(get_relname_relid(table_names[pair][0], catalog->schema), RowExclusiveLock);
	OutboxWriter *writer = outbox_writer_open(&kept[pair], table, false);
	TimestampTz now = GetCurrentTimestamp();

	for (int done = 0; done < n_rows; done += ROWS_AT_ONCE)
	{
		int			n = Min(n_rows - done, ROWS_AT_ONCE);
		TupleTableSlot **slots = outbox_writer_slots(writer, n);

		for (int i = 0; i < n; i++)
			fill_slot(ExecClearTuple(slots[i]), &rows[done + i], now);
		outbox_writer_insert(writer, n, GetCurrentCommandId(true));
	}
	outbox_writer_close(&kept[pair], writer);
	table_close(table, NoLock);
	cursor_rows += n_rows;
	rows = NULL;
	n_rows = room = 0;
}

void
outbox_cursors_failed(void)
{
	rows = NULL;
	n_rows = room = 0;
	generation++;
}

bool
outbox_cursors_turn(void)
{
	if (cursor_rows < CURSOR_ROWS || old_pair_full)
		return false;
	pair = 1 - pair;
	old_pair_full = true;
	cursor_rows = 0;
	generation++;
	return true;
}

bool
outbox_cursors_has_old(void)
{
	return old_pair_full;
}

bool
outbox_cursors_empty_old(const OutboxCatalog *catalog)
{
	Oid			tables[2];

	for (int i = 0; i < 2; i++)
		tables[i] = get_relname_relid(table_names[1 - pair][i], catalog->schema);
	return outbox_tables_empty(tables, 2);
}

void
outbox_cursors_emptied(void)
{
	old_pair_full = false;
}

/* ---- reading back ---- */

OutboxCursor *
outbox_cursors_load(int64 epoch, int *n)
{
	Datum		values[] = {Int64GetDatum(epoch)};
	OutboxCursor *cursors;
	int64		newest = 0;
	bool		null;

	outbox_statement_run(&select_newest, NULL, NULL);
	if (SPI_processed == 1)
	{
		newest = outbox_statement_int8(0, 1, &null);
		pair = DatumGetBool(outbox_statement_column(0, 2, &null)) ? 1 : 0;
	}
	next_seq = newest + 1;
	outbox_statement_run(&count_cursors[pair], NULL, NULL);
	cursor_rows = outbox_statement_int8(0, 1, &null);

	outbox_statement_run(&select_cursors, values, NULL);
	*n = (int) SPI_processed;
	cursors = palloc0(Max(*n, 1) * sizeof(OutboxCursor));
	for (int i = 0; i < *n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		OutboxCursor *cursor = &cursors[i];
		Datum		after;

		cursor->subscription = DatumGetInt32(SPI_getbinval(tuple, desc, 1, &null));
		cursor->at_head = DatumGetBool(SPI_getbinval(tuple, desc, 2, &null));
		cursor->base = (uint64) outbox_statement_int8(i, 3, &null);
		cursor->upper = (uint64) outbox_statement_int8(i, 4, &null);
		after = SPI_getbinval(tuple, desc, 5, &null);
		cursor->partial = !null;
		if (!null)
			cursor->after = *DatumGetUUIDP(after);
		cursor->offset = (uint64) outbox_statement_int8(i, 6, &null);
	}
	return cursors;
}

OutboxTick *
outbox_cursors_load_tick(int64 epoch, uint64 number)
{
	Datum		values[] = {Int64GetDatum(epoch), Int64GetDatum((int64) number)};
	OutboxSnapshot *snapshot;
	bool		null;

	if (number == 0)
		return outbox_tick_pin(outbox_tick_nothing());
	if (number == PG_INT64_MAX)
		return outbox_tick_pin(outbox_tick_everything());
	outbox_statement_run(&select_tick, values, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("tick " UINT64_FORMAT " that a cursor refers to is missing", number)));
	snapshot = outbox_snapshot_from_datum(outbox_statement_column(0, 1, &null),
										  U64FromFullTransactionId(DatumGetFullTransactionId(outbox_statement_column(0, 2, &null))),
										  (uint64) outbox_statement_int8(0, 3, &null));
	return outbox_tick_restore(number, snapshot, (uint64) outbox_statement_int8(0, 4, &null), (TimestampTz) outbox_statement_int8(0, 5, &null));
}

int64
outbox_cursors_restored_epoch(int64 epoch)
{
	Datum		values[] = {Int64GetDatum(epoch)};
	bool		null;

	outbox_statement_run(&select_restored, values, NULL);
	return SPI_processed == 0 ? 0 : outbox_statement_int8(0, 1, &null);
}
