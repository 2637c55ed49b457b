/*
 * Once: who comes first has the key.
 *
 * The server's own machinery for INSERT … ON CONFLICT, used without a statement: the unique index is searched with a snapshot that also sees what is not
 * committed; a transaction that has the key and is still open is waited for; then the row is inserted speculatively, so that losing a race against
 * another inserter is a conflict and no error.  A duplicate writes nothing.  What this adds is what the answer rests on: the holder's row itself, that it is
 * on disk before anybody hears of it, and that it does not contradict the snapshot of the transaction.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "compat.h"
#include "durable.h"
#include "executor/executor.h"
#include "held.h"
#include "once.h"
#include "storage/lmgr.h"
#include "utils/snapmgr.h"
#include "writer.h"

struct OutboxOnce
{
	Relation	table;
	OutboxWriter *writer;
};

/* From call to call.  There is one such table. */
static OutboxWriter *kept = NULL;

OutboxOnce *
outbox_once_open(Oid table)
{
	OutboxOnce *once = palloc(sizeof(OutboxOnce));

	once->table = outbox_held_open(table);
	once->writer = outbox_writer_open(&kept, once->table, true);
	return once;
}

void
outbox_once_close(OutboxOnce *once)
{
	outbox_writer_close(&kept, once->writer);
	table_close(once->table, NoLock);
	pfree(once);
}

TupleTableSlot *
outbox_once_row(OutboxOnce *once)
{
	return outbox_writer_slots(once->writer, 2)[0];
}

TupleTableSlot *
outbox_once_holder(OutboxOnce *once)
{
	return outbox_writer_slots(once->writer, 2)[1];
}

/* What the search found: a row that is committed, or our own, and that no vacuum can remove as long as we have a snapshot. */
static void
look_at_holder(OutboxOnce *once, ItemPointer tid, TupleTableSlot *holder, bool *own)
{
	bool		isnull;
	TransactionId xmin;

	if (!table_tuple_fetch_row_version(once->table, tid, SnapshotAny, holder))
		elog(ERROR, "could not fetch the row that has a key in table \"%s\"", RelationGetRelationName(once->table));
	xmin = DatumGetTransactionId(slot_getsysattr(holder, MinTransactionIdAttributeNumber, &isnull));
	*own = TransactionIdIsCurrentTransactionId(xmin);
	if (*own)
		return;
	if (IsolationUsesXactSnapshot() && !table_tuple_satisfies_snapshot(once->table, holder, GetActiveSnapshot()))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update"),
				 errdetail("Another transaction has used the same key since the snapshot of this one was taken."),
				 errhint("The transaction might succeed if retried.")));
	outbox_durable_wait(xmin);	/* a crash must not take back what somebody was told is there */
}

bool
outbox_once_find(OutboxOnce *once, TupleTableSlot *row, TupleTableSlot *holder, bool *own)
{
	ItemPointerData tid;
	bool		found = !OutboxExecCheckIndexConstraints(once->writer->target, row, once->writer->estate, &tid);

	ResetPerTupleExprContext(once->writer->estate);
	if (found)
		look_at_holder(once, &tid, holder, own);
	return found;
}

bool
outbox_once_insert(OutboxOnce *once, TupleTableSlot *row)
{
	TransactionId xid = GetCurrentTransactionId();
	uint32		token = SpeculativeInsertionLockAcquire(xid);
	bool		conflict = false;

	table_tuple_insert_speculative(once->table, row, GetCurrentCommandId(true), 0, NULL, token);
	list_free(OutboxExecInsertIndexTuplesOnce(once->writer->target, row, once->writer->estate, &conflict));
	table_tuple_complete_speculative(once->table, row, token, !conflict);
	SpeculativeInsertionLockRelease(xid);
	ResetPerTupleExprContext(once->writer->estate);
	return !conflict;
}

void
outbox_once_remove(OutboxOnce *once, TupleTableSlot *holder)
{
	TM_FailureData failure;
	TM_Result	result = table_tuple_delete(once->table, &holder->tts_tid, GetCurrentCommandId(true), GetActiveSnapshot(),
											InvalidSnapshot, true, &failure, false);

	/* deleted by somebody else: that is as good */
	if (result != TM_Ok && result != TM_Deleted && result != TM_Updated && result != TM_SelfModified)
		elog(ERROR, "could not delete a row of table \"%s\": %d", RelationGetRelationName(once->table), result);
}
