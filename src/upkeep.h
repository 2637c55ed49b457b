/*
 * Upkeep: rounds of maintenance, and what each of them did.
 */
#ifndef OUTBOX_UPKEEP_H
#define OUTBOX_UPKEEP_H

#include "bell.h"
#include "catalog.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

typedef struct OutboxMaintenance
{
	const char *action;			/* busy | rotated | full | sealed | kept | retired | deleted | expired | emptied | encrypted */
	int			segment;		/* or part of the attempt log; -1: none */
	int64		count;			/* kept, deleted, expired, encrypted: rows; rotated, retired, emptied: bytes of the old one */
	const char *detail;			/* or NULL */
	bool		more;			/* expired: not all of it; another round should come soon */
} OutboxMaintenance;

typedef struct OutboxRound
{
	OutboxCatalog catalog;
	OutboxDatabase *database;
	TimestampTz now;
	bool		thorough;		/* also what takes reading whole tables */
	int64		budget;			/* microseconds, for rows that expire by time */
	MemoryContext context;		/* of the list */
	List	   *done;
} OutboxRound;

/*
 * One round of maintenance, in the current transaction: rotates if due, seals what can be sealed, retires what is proven done, clears away what has
 * expired, and encrypts secrets that are not under the first key.  A worker's rounds have only segments in mind, but for one now and then, and those that are asked to be `thorough`.
 * Never waits for a lock.  Returns what it did, a list of palloc'd OutboxMaintenance.  Raises in transaction blocks and above READ COMMITTED.
 */
extern PGDLLEXPORT List *outbox_upkeep(bool thorough);

/* The part of the attempt log (0 ... 3) that attempts are written to at this time. */
extern PGDLLEXPORT int outbox_upkeep_attempt_part(TimestampTz at);

/* ---- for those that take part in a round ---- */

/* Adds to what was done. */
extern OutboxMaintenance *outbox_upkeep_report(OutboxRound *round, const char *action, int segment, int64 count, const char *detail);

extern bool outbox_upkeep_older(OutboxRound *round, TimestampTz at, int seconds);

/* In a new snapshot; returns the number of rows. */
extern uint64 outbox_upkeep_execute(const char *statement, int n, Oid *types, Datum *values);

#endif							/* OUTBOX_UPKEEP_H */
