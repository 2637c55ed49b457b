/*
 * The ring: rotation, sealing and retirement of segments, and what else is cleared away in time.
 */
#ifndef OUTBOX_RING_H
#define OUTBOX_RING_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "utils/uuid.h"

#include "bell.h"

typedef struct OutboxMaintenance
{
	const char *action;			/* busy | rotated | full | sealed | kept | retired | deleted | expired | emptied | encrypted */
	int			segment;		/* or part of the attempt log; -1: none */
	int64		count;			/* kept, deleted, expired, encrypted: rows; rotated, retired, emptied: bytes of the old one */
	const char *detail;			/* or NULL */
	bool		more;			/* expired: not all of it; another round should come soon */
} OutboxMaintenance;

/*
 * One round of maintenance, in the current transaction: rotates if due, seals what can be sealed, retires what is proven done, clears away what has
 * expired, and encrypts secrets that are not under the first key.  A worker's rounds have only segments in mind, but for one now and then, and those that are asked to be `thorough`.
 * Never waits for a lock.  Returns what it did, a list of palloc'd OutboxMaintenance.  Raises in transaction blocks and above READ COMMITTED.
 */
extern PGDLLEXPORT List *outbox_ring_maintain(bool thorough);

/* A segment that is full: sealed, not current, not empty; and what its retirement depends on. */
typedef struct OutboxFullSegment
{
	uint64		seal_tick;
	pg_uuid_t	newest;
	int64		bytes;
	bool		expired;		/* outbox.event_retention is over for all of it: only its readers keep it */
} OutboxFullSegment;

/* The full segments, in the order of their newest events, as far as they can be looked at without waiting; how many. */
extern PGDLLEXPORT int outbox_ring_full(OutboxFullSegment segments[OUTBOX_SEGMENTS]);

/* Empties these tables, all or none; false, and nothing done, if one of them or of what belongs to them is locked. */
extern PGDLLEXPORT bool outbox_ring_truncate(const Oid *tables, int n);

/* The part of the attempt log (0 … 3) that attempts are written to at this time. */
extern PGDLLEXPORT int outbox_ring_attempt_part(TimestampTz at);

#endif							/* OUTBOX_RING_H */
