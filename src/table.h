/*
 * Tables without waiting: opening, measuring, locking and emptying them, or not at all.
 */
#ifndef OUTBOX_TABLE_H
#define OUTBOX_TABLE_H

#include "nodes/pg_list.h"
#include "utils/rel.h"

/* In AccessShare mode, if that can be had at once; else NULL. */
extern Relation outbox_table_open(Oid oid);

/* Of a table that is open: with its TOAST table and the indexes of both, as far as they can be locked at once.  (pg_total_relation_size() would wait for them.) */
extern int64 outbox_table_bytes(Relation table);

/* Qualified and quoted. */
extern char *outbox_table_name(Relation relation);

/* Locks whatever TRUNCATE would wait for, all or nothing: the table, its TOAST table, and the indexes of both.  False if something is busy. */
extern bool outbox_table_lock(Oid table, List **locks);
extern void outbox_table_unlock(List *locks);

/* TRUNCATE of a table that is locked.  With SPI connected. */
extern void outbox_table_truncate(const char *name);

/* Is that what is going on? */
extern bool outbox_table_truncating(void);

/* Empties these tables, all or none; false, and nothing done, if one of them or of what belongs to them is locked. */
extern PGDLLEXPORT bool outbox_tables_empty(const Oid *tables, int n);

#endif							/* OUTBOX_TABLE_H */
