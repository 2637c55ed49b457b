/*
 * Writers: what it takes to insert rows into a table from C, kept from call to call.
 *
 * To find out which indexes a table has and how their entries are made takes longer than to write a row.  So a backend keeps that, as plain memory, until
 * any relation it knows of changes.  It keeps nothing else: the caller opens and locks the table each time, and the indexes are opened here each time, and locked if they
 * are not yet; so a writer says nothing about which table is to be written, holds nothing that ends with a statement or a subtransaction, and has no news to miss: to get a
 * lock is to hear what changed before, and what changes while it is held is none of this transaction's business.  Not even where the relation cache has an index: a DROP INDEX that
 * fails has forgotten it already, and brings no news.
 *
 * Kept is only what consists of plain btrees.  Expressions, predicates and other access methods may hold more than memory in what is kept for them, or run code that comes back here.
 *
 * While a writer is used it belongs to the caller's memory context: an error ends it, and whoever comes here again meanwhile makes another one.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "compat.h"
#include "executor/executor.h"
#include "held.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "writer.h"

static uint64 changes = 0;		/* that were heard of, of any relation */

static void
note_change(Datum arg, Oid relation)
{
	changes++;
}

static void
listen_for_changes(void)
{
	static bool listening = false;

	if (!listening)
		CacheRegisterRelcacheCallback(note_change, (Datum) 0);
	listening = true;
}

/* Does what is known of an index consist of nothing but memory? */
static bool
is_plain(Relation index, const IndexInfo *info)
{
	return index->rd_rel->relam == BTREE_AM_OID && info->ii_Expressions == NIL && info->ii_Predicate == NIL && info->ii_ExclusionOps == NULL;
}

static OutboxWriter *
make(Relation table, bool unique)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "outbox writer", ALLOCSET_SMALL_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(context);
	OutboxWriter *writer = palloc0(sizeof(OutboxWriter));

	listen_for_changes();
	writer->context = context;
	writer->table = table;
	writer->oid = RelationGetRelid(table);
	writer->changes = changes;	/* before anything is looked at */
	writer->estate = CreateExecutorState();
	writer->target = makeNode(ResultRelInfo);
	InitResultRelInfo(writer->target, table, 0, NULL, 0);
	ExecOpenIndices(writer->target, unique);
	writer->indexes = palloc_array(Oid, writer->target->ri_NumIndices + 1);
	writer->plain = true;
	for (int i = 0; i < writer->target->ri_NumIndices; i++)
	{
		Relation	index = writer->target->ri_IndexRelationDescs[i];

		writer->indexes[i] = RelationGetRelid(index);
		writer->plain = writer->plain && is_plain(index, writer->target->ri_IndexRelationInfo[i]);
	}
	MemoryContextSwitchTo(caller);
	return writer;
}

/* False if there is news, which may have come with the locks. */
static bool
open_again(OutboxWriter *writer)
{
	if (!outbox_held_still(&writer->held))
	{
		for (int i = 0; i < writer->target->ri_NumIndices; i++)
			(void) outbox_held_lock(writer->indexes[i], RowExclusiveLock, true);
		outbox_held_note(&writer->held);
	}
	if (writer->changes != changes)
		return false;
	for (int i = 0; i < writer->target->ri_NumIndices; i++)
		writer->target->ri_IndexRelationDescs[i] = index_open(writer->indexes[i], NoLock);
	return true;
}

OutboxWriter *
outbox_writer_open(OutboxWriter **kept, Relation table, bool unique)
{
	OutboxWriter *writer = *kept;

	*kept = NULL;
	if (writer == NULL)
		return make(table, unique);

	MemoryContextSetParent(writer->context, CurrentMemoryContext);
	if (writer->oid == RelationGetRelid(table) && writer->changes == changes && open_again(writer))
	{
		writer->table = table;
		writer->target->ri_RelationDesc = table;
		return writer;
	}
	MemoryContextDelete(writer->context);
	return make(table, unique);
}

TupleTableSlot **
outbox_writer_slots(OutboxWriter *writer, int n)
{
	if (n > writer->n_slots)
	{
		MemoryContext caller = MemoryContextSwitchTo(writer->context);

		if (writer->slots == NULL)
			writer->slots = palloc_array(TupleTableSlot *, n);
		else if (n > writer->room)
			writer->slots = repalloc_array(writer->slots, TupleTableSlot *, n);
		writer->room = Max(writer->room, n);
		for (; writer->n_slots < n; writer->n_slots++)
		{
			/* of a copy of the descriptor: the relation's own is counted, by whoever's statement it is */
			TupleDesc	descriptor = writer->n_slots == 0 ? CreateTupleDescCopy(RelationGetDescr(writer->table)) : writer->slots[0]->tts_tupleDescriptor;

			writer->slots[writer->n_slots] = MakeSingleTupleTableSlot(descriptor, table_slot_callbacks(writer->table));
		}
		MemoryContextSwitchTo(caller);
	}
	return writer->slots;
}

void
outbox_writer_insert(OutboxWriter *writer, int n, CommandId command)
{
	MemoryContext caller = MemoryContextSwitchTo(GetPerTupleMemoryContext(writer->estate));

	if (n == 1)
		table_tuple_insert(writer->table, writer->slots[0], command, 0, NULL);
	else
		table_multi_insert(writer->table, writer->slots, n, command, 0, NULL);
	if (writer->target->ri_NumIndices > 0)
	{
		for (int i = 0; i < n; i++)
			(void) OutboxExecInsertIndexTuples(writer->target, writer->slots[i], writer->estate);
	}
	MemoryContextSwitchTo(caller);
	ResetPerTupleExprContext(writer->estate);
}

void
outbox_writer_close(OutboxWriter **kept, OutboxWriter *writer)
{
	for (int i = 0; i < writer->n_slots; i++)
		ExecClearTuple(writer->slots[i]);
	if (writer->plain)
	{
		for (int i = 0; i < writer->target->ri_NumIndices; i++)
			index_close(writer->target->ri_IndexRelationDescs[i], NoLock);	/* their locks stay: they may not be this statement's to give back */
	}
	else
		ExecCloseIndices(writer->target);
	if (*kept != NULL || !writer->plain)
	{
		FreeExecutorState(writer->estate);
		MemoryContextDelete(writer->context);
		return;
	}
	MemoryContextSetParent(writer->context, TopMemoryContext);
	*kept = writer;
}
