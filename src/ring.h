/*
 * The ring: rotation, sealing and retirement of segments.
 */
#ifndef OUTBOX_RING_H
#define OUTBOX_RING_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "utils/uuid.h"

#include "bell.h"
#include "upkeep.h"

/* Sub-ids of the extension object, as lock tags */
#define OUTBOX_LOCK_RING	1	/* rotation, sealing, retirement: a round of maintenance */
#define OUTBOX_LOCK_FLOOR	2	/* the first use after a server start */

/* The ring's part of a round of maintenance: rotates if due, seals what can be sealed, retires what is proven done. */
extern void outbox_ring_turn(OutboxRound *round);

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

#endif							/* OUTBOX_RING_H */
