/*
 * A table that is written from C, row by row, for many calls.
 */
#ifndef OUTBOX_WRITER_H
#define OUTBOX_WRITER_H

#include "executor/tuptable.h"
#include "held.h"
#include "nodes/execnodes.h"
#include "utils/rel.h"

typedef struct OutboxWriter
{
	Relation	table;			/* the caller's; open and locked by it */
	EState	   *estate;
	ResultRelInfo *target;		/* with its indexes, open */

	/* writer.c */
	MemoryContext context;
	Oid			oid;			/* of the table */
	bool		plain;			/* all its indexes are: writer.c */
	uint64		changes;		/* what was known when this was found out */
	int			n_slots;
	int			room;
	TupleTableSlot **slots;
	Oid		   *indexes;
	OutboxHeld	held;			/* the locks on them */
} OutboxWriter;

/*
 * A writer for this table, which the caller has locked (RowExclusive).  `kept` is where the caller keeps a writer from call to call: a static variable of its own for each kind of
 * table.  unique: its unique indexes will be asked before they are written to (ExecCheckIndexConstraints).
 */
extern PGDLLEXPORT OutboxWriter *outbox_writer_open(OutboxWriter **kept, Relation table, bool unique);

/* n empty slots, the same in each call; what is in them is gone when the writer is closed. */
extern PGDLLEXPORT TupleTableSlot **outbox_writer_slots(OutboxWriter *writer, int n);

/* Inserts what is stored in slots 0 .. n-1, in this order, and enters it into all indexes. */
extern PGDLLEXPORT void outbox_writer_insert(OutboxWriter *writer, int n, CommandId command);

/* The table and its indexes stay locked until the transaction ends. */
extern PGDLLEXPORT void outbox_writer_close(OutboxWriter **kept, OutboxWriter *writer);

#endif							/* OUTBOX_WRITER_H */
