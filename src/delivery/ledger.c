/*
 * The ledger.
 *
 * Attempts are appended by one multi-insert; delivery rows are written one by one, because they are exceptions.  A row that somebody else has
 * locked (an operator in an open transaction) is never waited for: its note stays, and is tried again with the next batch.  A row that an operator
 * has discarded, or that is gone with its subscription, is left alone.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "lib/ilist.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "compat.h"
#include "ledger.h"
#include "upkeep.h"
#include "settings.h"
#include "statement.h"

typedef enum NoteKind
{
	NOTE_PUT,
	NOTE_REMOVE,
	NOTE_DISABLE,
	NOTE_ENABLE,
	NOTE_FAILING
} NoteKind;

typedef struct Note
{
	dlist_node	node;
	MemoryContext context;
	NoteKind	kind;
	bool		known;			/* PUT: the row exists already */
	bool		written;		/* by the transaction that is not committed yet */
	OutboxRow	row;
} Note;

typedef struct Attempt
{
	pg_uuid_t	event_id;
	TimestampTz at;
	int32		subscription;
	int32		duration;
	int16		attempt;
	int16		status;
	OutboxOutcome outcome;
	bool		replay;
	char	   *error;
	bytea	   *response;
} Attempt;

static const char *const status_names[] = {
	[OUTBOX_ROW_SENDING] = "sending",
	[OUTBOX_ROW_LEASED] = "leased",
	[OUTBOX_ROW_RETRYING] = "retrying",
	[OUTBOX_ROW_BLOCKED] = "blocked",
	[OUTBOX_ROW_DEAD] = "dead"
};

static dlist_head notes = DLIST_STATIC_INIT(notes);
static int	n_notes = 0;
static int	n_new_rows = 0;
static MemoryContext attempts_context;
static Attempt *attempts;
static int	n_attempts = 0;
static int	attempts_room = 0;

/* ---- noting ---- */

static bytea *
to_bytea(const unsigned char *data, size_t size)
{
	bytea	   *result = palloc(VARHDRSZ + size);

	SET_VARSIZE(result, VARHDRSZ + size);
	memcpy(VARDATA(result), data, size);
	return result;
}

void
outbox_ledger_attempt(int32 subscription, const pg_uuid_t *event_id, int attempt, TimestampTz at,
					  const OutboxExchange *exchange, bool replay, bool same)
{
	MemoryContext old;
	Attempt    *entry;

	if (outbox_attempt_log == OUTBOX_ATTEMPTS_NONE ||
		(outbox_attempt_log == OUTBOX_ATTEMPTS_FAILURES && exchange->outcome == OUTBOX_DELIVERED))
		return;
	if (attempts_context == NULL)
		attempts_context = AllocSetContextCreate(TopMemoryContext, "outbox attempts", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(attempts_context);
	if (n_attempts == attempts_room)
	{
		attempts_room = Max(256, attempts_room * 2);
		attempts = attempts == NULL ? palloc(attempts_room * sizeof(Attempt))
			: repalloc(attempts, attempts_room * sizeof(Attempt));
	}
	entry = &attempts[n_attempts];
	entry->event_id = *event_id;
	entry->at = at;
	entry->subscription = subscription;
	entry->duration = (int32) Min(exchange->duration, PG_INT32_MAX);
	entry->attempt = (int16) Min(attempt, PG_INT16_MAX);
	entry->status = (int16) exchange->status;
	entry->outcome = exchange->outcome;
	entry->replay = replay;
	if (same)
	{
		entry->error = entry[-1].error;
		entry->response = entry[-1].response;
	}
	else
	{
		entry->error = exchange->outcome == OUTBOX_DELIVERED ? NULL : pstrdup(exchange->error);
		entry->response = exchange->response_size == 0 ? NULL : to_bytea(exchange->response, exchange->response_size);
	}
	n_attempts++;
	MemoryContextSwitchTo(old);
}

static Note *
new_note(NoteKind kind)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "outbox note", ALLOCSET_SMALL_SIZES);
	Note	   *note = MemoryContextAllocZero(context, sizeof(Note));

	note->context = context;
	note->kind = kind;
	return note;
}

static void
keep_note(Note *note)
{
	dlist_push_tail(&notes, &note->node);
	n_notes++;
}

static const char *
copy(const Note *note, const char *string)
{
	return string == NULL ? NULL : MemoryContextStrdup(note->context, string);
}

void
outbox_ledger_put(const OutboxRow *row, bool known)
{
	Note	   *note = new_note(NOTE_PUT);

	note->row = *row;
	note->row.key = copy(note, row->key);
	note->row.error = copy(note, row->error);
	note->row.reason = copy(note, row->reason);
	note->known = known;
	n_new_rows += !known;
	keep_note(note);
}

void
outbox_ledger_remove(int32 subscription, const pg_uuid_t *event_id)
{
	Note	   *note = new_note(NOTE_REMOVE);

	note->row.subscription = subscription;
	note->row.event_id = *event_id;
	note->known = true;
	keep_note(note);
}

static bool
state_noted(NoteKind kind, int32 subscription)
{
	dlist_iter	iter;

	dlist_foreach(iter, &notes)
	{
		const Note *note = dlist_container(Note, node, iter.cur);

		if (note->kind == kind && note->row.subscription == subscription)
			return true;
	}
	return false;
}

static void
note_state(NoteKind kind, int32 subscription, const char *reason)
{
	Note	   *note = new_note(kind);

	note->row.subscription = subscription;
	note->row.reason = copy(note, reason);
	keep_note(note);
}

void
outbox_ledger_disable(int32 subscription, const char *reason)
{
	note_state(NOTE_DISABLE, subscription, reason);
}

void
outbox_ledger_enable(int32 subscription, const char *reason)
{
	if (!state_noted(NOTE_ENABLE, subscription))
		note_state(NOTE_ENABLE, subscription, reason);
}

void
outbox_ledger_failing(int32 subscription, TimestampTz since)
{
	Note	   *note;
	dlist_iter	iter;

	/* one that was put off, for somebody has locked the row, must not come after this one */
	dlist_foreach(iter, &notes)
	{
		note = dlist_container(Note, node, iter.cur);
		if (note->kind == NOTE_FAILING && note->row.subscription == subscription)
		{
			note->row.first_at = since;
			return;
		}
	}
	note = new_note(NOTE_FAILING);
	note->row.subscription = subscription;
	note->row.first_at = since;
	keep_note(note);
}

int
outbox_ledger_pending(void)
{
	return n_notes + n_attempts;
}

int
outbox_ledger_new_rows(void)
{
	return n_new_rows;
}

bool
outbox_ledger_disabling(int32 subscription)
{
	return state_noted(NOTE_DISABLE, subscription);
}

bool
outbox_ledger_noted(int32 subscription, const pg_uuid_t *event_id)
{
	dlist_iter	iter;

	dlist_foreach(iter, &notes)
	{
		const Note *note = dlist_container(Note, node, iter.cur);

		if (!note->written && (note->kind == NOTE_PUT || note->kind == NOTE_REMOVE) && note->row.subscription == subscription &&
			memcmp(&note->row.event_id, event_id, sizeof(pg_uuid_t)) == 0)
			return true;
	}
	return false;
}

/* ---- SPI: constant statements, prepared once ---- */

static OutboxStatement lock_row = {
	"SELECT d.status IN ('dead', 'discarded') FROM outbox.delivery d"
	" WHERE d.subscription_id = $1 AND d.event_id = $2 FOR UPDATE SKIP LOCKED",
	2, {INT4OID, UUIDOID}
};

static OutboxStatement row_exists = {
	"SELECT 1 FROM outbox.delivery d WHERE d.subscription_id = $1 AND d.event_id = $2",
	2, {INT4OID, UUIDOID}
};

static OutboxStatement insert_row = {
	"INSERT INTO outbox.delivery AS d (subscription_id, event_id, status, key, attempts, first_attempt_at,"
	" next_attempt_at, last_status_code, last_error, reason, ended_at, log_id)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
	" ON CONFLICT (subscription_id, event_id) DO NOTHING",
	12, {INT4OID, UUIDOID, TEXTOID, TEXTOID, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID, TEXTOID, TEXTOID,
	TIMESTAMPTZOID, UUIDOID}
};

static OutboxStatement update_row = {
	"UPDATE outbox.delivery AS d SET status = $3, key = coalesce($4, d.key), attempts = $5, first_attempt_at = $6,"
	" next_attempt_at = $7, last_status_code = $8, last_error = $9, reason = $10, ended_at = $11"
	" WHERE d.subscription_id = $1 AND d.event_id = $2",
	11, {INT4OID, UUIDOID, TEXTOID, TEXTOID, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID, TEXTOID, TEXTOID,
	TIMESTAMPTZOID}
};

static OutboxStatement delete_row = {
	"DELETE FROM outbox.delivery d WHERE d.subscription_id = $1 AND d.event_id = $2",
	2, {INT4OID, UUIDOID}
};

static OutboxStatement disable = {
	"UPDATE outbox.subscription s SET state = 'disabled', reason = $2, state_since = pg_catalog.clock_timestamp()"
	" WHERE s.id = (SELECT l.id FROM outbox.subscription l WHERE l.id = $1 AND l.state = 'active' FOR UPDATE SKIP LOCKED)",
	2, {INT4OID, TEXTOID}
};

/* resume() would wait for whoever has locked one of these rows, and everything else that is to be recorded with it: so they are locked beforehand, all or not now. */
static OutboxStatement enable = {
	"WITH subscription AS MATERIALIZED ("
	"  SELECT s.name FROM outbox.subscription s WHERE s.id = $1 AND s.state = 'disabled' AND s.reason = $2 FOR UPDATE SKIP LOCKED),"
	" locked AS MATERIALIZED ("
	"  SELECT d.event_id FROM outbox.delivery d WHERE d.subscription_id = $1 AND d.status NOT IN ('dead', 'discarded') FOR UPDATE SKIP LOCKED)"
	" SELECT outbox._resume(s.name, true) FROM subscription s"
	" WHERE (SELECT pg_catalog.count(*) FROM locked)"
	"  = (SELECT pg_catalog.count(*) FROM outbox.delivery d WHERE d.subscription_id = $1 AND d.status NOT IN ('dead', 'discarded'))",
	2, {INT4OID, TEXTOID}
};

static OutboxStatement is_disabled = {
	"SELECT 1 FROM outbox.subscription s WHERE s.id = $1 AND s.state = 'disabled' AND s.reason = $2", 2, {INT4OID, TEXTOID}
};

static OutboxStatement failing = {
	"UPDATE outbox.subscription s SET failing_since = $2"
	" WHERE s.id = (SELECT l.id FROM outbox.subscription l WHERE l.id = $1 FOR UPDATE SKIP LOCKED)",
	2, {INT4OID, TIMESTAMPTZOID}
};

static OutboxStatement exists = {
	"SELECT 1 FROM outbox.subscription s WHERE s.id = $1", 1, {INT4OID}
};

static OutboxStatement is_active = {
	"SELECT 1 FROM outbox.subscription s WHERE s.id = $1 AND s.state = 'active'", 1, {INT4OID}
};

/*
 * A boundary is raised to a tick that was taken after it.  Only what the snapshots see tells that: of a transaction that was open in one and has ended in the other, no xid need have been
 * given out between them, and `next` is read after its snapshot.
 */
static OutboxStatement meet_matches = {
	"UPDATE outbox.subscription_match m SET met = true,"
	"  until_snapshot = CASE WHEN k.later THEN $2 ELSE m.until_snapshot END,"
	"  until_next = CASE WHEN k.later THEN GREATEST(m.until_next, $3) ELSE m.until_next END,"
	"  until_clock = CASE WHEN k.later THEN GREATEST(m.until_clock, $4) ELSE m.until_clock END"
	" FROM (SELECT l.ctid AS row,"
	"         pg_catalog.pg_snapshot_xmax(l.until_snapshot) < pg_catalog.pg_snapshot_xmax($2)"
	"         OR EXISTS (SELECT FROM pg_catalog.pg_snapshot_xip(l.until_snapshot) x WHERE pg_catalog.pg_visible_in_snapshot(x, $2)) AS later"
	"    FROM outbox.subscription_match l WHERE l.epoch = $1 AND NOT l.met FOR UPDATE SKIP LOCKED) k"
	" WHERE m.ctid = k.row",
	4, {INT8OID, PG_SNAPSHOTOID, XID8OID, INT8OID}
};

static OutboxStatement select_exceptions = {
	"SELECT d.subscription_id, coalesce(d.log_id, d.event_id), d.status, d.key, d.attempts, d.first_attempt_at, d.next_attempt_at, d.event_id, d.replay IS NOT NULL"
	"  FROM outbox.delivery d WHERE d.status NOT IN ('dead', 'discarded')"
	" UNION ALL"
	" SELECT d.subscription_id, coalesce(d.log_id, d.event_id), d.status, d.key, d.attempts, d.first_attempt_at, d.next_attempt_at, d.event_id, d.replay IS NOT NULL"
	"  FROM outbox.delivery d JOIN outbox.subscription s ON s.id = d.subscription_id"
	" WHERE d.status = 'dead' AND d.key IS NOT NULL AND s.on_dead = 'block'"
	" ORDER BY 1, 2",
	0, {0}
};

static OutboxStatement select_settled = {
	"SELECT d.subscription_id, d.event_id FROM outbox.delivery d WHERE d.event_id = ANY ($1)", 1, {UUIDARRAYOID}
};

/* ---- writing delivery rows ---- */

/* Ours to change?  If not now, *later says whether it is worth another try. */
static bool
lock_for_change(const Note *note, bool *later)
{
	Datum		values[] = {Int32GetDatum(note->row.subscription), UUIDPGetDatum(&note->row.event_id)};
	bool		null;

	*later = false;
	outbox_statement_run(&lock_row, values, NULL);
	if (SPI_processed == 1)
	{
		bool		ours = !DatumGetBool(outbox_statement_column(0, 1, &null));

		SPI_freetuptable(SPI_tuptable);
		return ours;
	}
	outbox_statement_run(&row_exists, values, NULL);
	*later = SPI_processed == 1;
	SPI_freetuptable(SPI_tuptable);
	return false;
}

static Datum
text_or_null(const char *string, char *null)
{
	*null = string == NULL ? 'n' : ' ';
	return string == NULL ? (Datum) 0 : CStringGetTextDatum(string);
}

static Datum
time_or_null(TimestampTz at, char *null)
{
	*null = at == 0 ? 'n' : ' ';
	return TimestampTzGetDatum(at);
}

static void
write_row(const Note *note)
{
	const OutboxRow *row = &note->row;
	bool		scheduled = memcmp(&row->log_id, &row->event_id, sizeof(pg_uuid_t)) != 0;
	char		nulls[] = "            ";
	Datum		values[12];

	values[0] = Int32GetDatum(row->subscription);
	values[1] = UUIDPGetDatum(&row->event_id);
	values[2] = CStringGetTextDatum(status_names[row->status]);
	values[3] = text_or_null(row->key, &nulls[3]);
	values[4] = Int32GetDatum(row->attempts);
	values[5] = time_or_null(row->first_at, &nulls[5]);
	values[6] = time_or_null(row->next_at, &nulls[6]);
	values[7] = Int32GetDatum(row->status_code);
	nulls[7] = row->status_code == 0 ? 'n' : ' ';
	values[8] = text_or_null(row->error, &nulls[8]);
	values[9] = text_or_null(row->reason, &nulls[9]);
	values[10] = time_or_null(row->status == OUTBOX_ROW_DEAD ? GetCurrentTimestamp() : 0, &nulls[10]);
	values[11] = UUIDPGetDatum(&row->log_id);
	nulls[11] = scheduled ? ' ' : 'n';
	outbox_statement_run(note->known ? &update_row : &insert_row, values, nulls);
}

static bool
write_disable(const Note *note)
{
	Datum		values[] = {Int32GetDatum(note->row.subscription), CStringGetTextDatum(note->row.reason)};

	outbox_statement_run(&disable, values, NULL);
	if (SPI_processed == 1)
		return true;
	outbox_statement_run(&is_active, values, NULL);
	return SPI_processed == 0;
}

static bool
write_enable(const Note *note)
{
	Datum		values[] = {Int32GetDatum(note->row.subscription), CStringGetTextDatum(note->row.reason)};

	outbox_statement_run(&enable, values, NULL);
	if (SPI_processed == 1)
		return true;
	outbox_statement_run(&is_disabled, values, NULL);
	return SPI_processed == 0;
}

static bool
write_failing(const Note *note)
{
	char		nulls[] = "  ";
	Datum		values[2];

	values[0] = Int32GetDatum(note->row.subscription);
	values[1] = time_or_null(note->row.first_at, &nulls[1]);
	outbox_statement_run(&failing, values, nulls);
	if (SPI_processed == 1)
		return true;
	outbox_statement_run(&exists, values, NULL);
	return SPI_processed == 0;
}

/* True if the note needs no other try once this transaction has committed. */
static bool
write_note(const Note *note)
{
	bool		later = false;

	switch (note->kind)
	{
		case NOTE_PUT:
			if (!note->known || lock_for_change(note, &later))
				write_row(note);
			break;
		case NOTE_REMOVE:
			if (lock_for_change(note, &later))
			{
				Datum		values[] = {Int32GetDatum(note->row.subscription), UUIDPGetDatum(&note->row.event_id)};

				outbox_statement_run(&delete_row, values, NULL);
			}
			break;
		case NOTE_DISABLE:
			return write_disable(note);
		case NOTE_ENABLE:
			return write_enable(note);
		case NOTE_FAILING:
			return write_failing(note);
	}
	return !later;
}

/* ---- writing attempts ---- */

#define ATTEMPT_COLUMNS 10		/* what follows is a DBA's */

static void
fill_slot(TupleTableSlot *slot, const Attempt *attempt)
{
	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
	memset(slot->tts_isnull, false, ATTEMPT_COLUMNS * sizeof(bool));
	slot->tts_values[0] = UUIDPGetDatum(&attempt->event_id);
	slot->tts_values[1] = TimestampTzGetDatum(attempt->at);
	slot->tts_values[2] = Int32GetDatum(attempt->subscription);
	slot->tts_values[3] = Int32GetDatum(attempt->duration);
	slot->tts_values[4] = Int16GetDatum(attempt->attempt);
	slot->tts_values[5] = Int16GetDatum(attempt->status);
	slot->tts_isnull[5] = attempt->status == 0;
	slot->tts_values[6] = Int16GetDatum((int16) attempt->outcome);
	slot->tts_isnull[7] = attempt->error == NULL;
	if (attempt->error != NULL)
		slot->tts_values[7] = CStringGetTextDatum(attempt->error);
	slot->tts_values[8] = PointerGetDatum(attempt->response);
	slot->tts_isnull[8] = attempt->response == NULL;
	slot->tts_values[9] = BoolGetDatum(attempt->replay);
	ExecStoreVirtualTuple(slot);
}

#define ATTEMPTS_AT_ONCE 100		/* a page of them: slots cost more to make than a WAL record for each hundred */

/* All of them into the part of now, by multi-insert, with its indexes maintained. */
static void
write_attempts(const OutboxCatalog *catalog)
{
	char		name[NAMEDATALEN];
	Relation	relation;
	EState	   *estate = CreateExecutorState();
	ResultRelInfo *result = makeNode(ResultRelInfo);
	BulkInsertState bulk = GetBulkInsertState();
	TupleTableSlot *slots[ATTEMPTS_AT_ONCE];
	int			n_slots = Min(n_attempts, ATTEMPTS_AT_ONCE);

	snprintf(name, sizeof(name), "attempt_log_%d", outbox_upkeep_attempt_part(GetCurrentTimestamp()));
	relation = table_open(get_relname_relid(name, catalog->schema), RowExclusiveLock);
	InitResultRelInfo(result, relation, 0, NULL, 0);
	ExecOpenIndices(result, false);
	for (int i = 0; i < n_slots; i++)
		slots[i] = table_slot_create(relation, NULL);

	for (int done = 0; done < n_attempts; done += n_slots)
	{
		int			n = Min(n_slots, n_attempts - done);

		for (int i = 0; i < n; i++)
		{
			ExecClearTuple(slots[i]);
			fill_slot(slots[i], &attempts[done + i]);
		}
		table_multi_insert(relation, slots, n, GetCurrentCommandId(true), 0, bulk);
		for (int i = 0; i < n && result->ri_NumIndices > 0; i++)
		{
			list_free(OutboxExecInsertIndexTuples(result, slots[i], estate));
			ResetPerTupleExprContext(estate);
		}
	}

	for (int i = 0; i < n_slots; i++)
		ExecDropSingleTupleTableSlot(slots[i]);
	FreeBulkInsertState(bulk);
	table_finish_bulk_insert(relation, 0);
	ExecCloseIndices(result);
	table_close(relation, NoLock);
	FreeExecutorState(estate);
}

void
outbox_ledger_write(const OutboxCatalog *catalog)
{
	dlist_iter	iter;

	if (n_attempts > 0)
		write_attempts(catalog);
	dlist_foreach(iter, &notes)
	{
		Note	   *note = dlist_container(Note, node, iter.cur);

		note->written = write_note(note);
	}
}

bool
outbox_ledger_committed(void)
{
	bool		changed = false;
	dlist_mutable_iter iter;

	if (attempts_context != NULL)
		MemoryContextReset(attempts_context);
	attempts = NULL;
	n_attempts = attempts_room = 0;
	dlist_foreach_modify(iter, &notes)
	{
		Note	   *note = dlist_container(Note, node, iter.cur);

		if (!note->written)
			continue;
		dlist_delete(&note->node);
		n_notes--;
		n_new_rows -= note->kind == NOTE_PUT && !note->known;
		changed |= note->kind == NOTE_DISABLE || note->kind == NOTE_ENABLE;
		MemoryContextDelete(note->context);
	}
	return changed;
}

void
outbox_ledger_failed(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &notes)
		dlist_container(Note, node, iter.cur)->written = false;
}

void
outbox_ledger_meet_matches(int64 epoch, const OutboxSnapshot *matched)
{
	char		nulls[] = "    ";
	Datum		values[4];

	values[0] = Int64GetDatum(epoch);
	if (matched == NULL)
		nulls[1] = nulls[2] = nulls[3] = 'n';
	else
	{
		values[1] = outbox_snapshot_to_datum(matched);
		values[2] = FullTransactionIdGetDatum(FullTransactionIdFromU64(matched->next));
		values[3] = Int64GetDatum((int64) matched->clock);
	}
	outbox_statement_run(&meet_matches, values, nulls);
}

/* ---- reading back ---- */

static OutboxRowStatus
status_by_name(const char *name)
{
	for (int i = 0; i < lengthof(status_names); i++)
	{
		if (strcmp(status_names[i], name) == 0)
			return (OutboxRowStatus) i;
	}
	return OUTBOX_ROW_RETRYING;
}

OutboxException *
outbox_ledger_load_exceptions(int *n)
{
	OutboxException *exceptions;
	TupleDesc	desc;

	outbox_statement_run(&select_exceptions, NULL, NULL);
	*n = (int) SPI_processed;
	desc = SPI_tuptable->tupdesc;
	exceptions = palloc0(Max(*n, 1) * sizeof(OutboxException));
	for (int i = 0; i < *n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		OutboxException *exception = &exceptions[i];
		char	   *key = SPI_getvalue(tuple, desc, 4);
		bool		null;
		Datum		at;

		exception->subscription = DatumGetInt32(SPI_getbinval(tuple, desc, 1, &null));
		exception->log_id = *DatumGetUUIDP(SPI_getbinval(tuple, desc, 2, &null));
		exception->event_id = *DatumGetUUIDP(SPI_getbinval(tuple, desc, 8, &null));
		exception->status = status_by_name(SPI_getvalue(tuple, desc, 3));
		exception->keyed = key != NULL;
		if (key != NULL)
			exception->key_hash = hash_bytes_extended((unsigned char *) key, strlen(key), 0);
		exception->attempts = DatumGetInt32(SPI_getbinval(tuple, desc, 5, &null));
		at = SPI_getbinval(tuple, desc, 6, &null);
		exception->first_at = null ? 0 : DatumGetTimestampTz(at);
		at = SPI_getbinval(tuple, desc, 7, &null);
		exception->next_at = null ? 0 : DatumGetTimestampTz(at);
		exception->replay = DatumGetBool(SPI_getbinval(tuple, desc, 9, &null));
	}
	return exceptions;
}

int
outbox_ledger_settled(const OutboxLoggedEvent *events, int n, OutboxSettled **settled)
{
	MemoryContext result_context = CurrentMemoryContext;
	Datum	   *ids;
	Datum		values[1];
	int			found;

	*settled = NULL;
	if (n == 0)
		return 0;
	SPI_connect();
	ids = palloc(n * sizeof(Datum));
	for (int i = 0; i < n; i++)
		ids[i] = UUIDPGetDatum(&events[i].event.id);
	values[0] = PointerGetDatum(construct_array(ids, n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
	outbox_statement_run(&select_settled, values, NULL);
	found = (int) SPI_processed;
	*settled = MemoryContextAlloc(result_context, Max(found, 1) * sizeof(OutboxSettled));
	for (int i = 0; i < found; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		bool		null;

		(*settled)[i].subscription = DatumGetInt32(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 1, &null));
		(*settled)[i].event_id = *DatumGetUUIDP(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 2, &null));
	}
	SPI_finish();
	return found;
}
