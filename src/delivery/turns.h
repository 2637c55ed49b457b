/*
 * Turns: whose request is the next, and which slot it takes.
 *
 * Tenants take turns, and within a tenant its lanes, so that a tenant with a thousand subscriptions gets no more than one with one.  A subscription without a tenant takes turns like
 * a tenant of its own.  Slots are shared as slots.h says, of the server (outbox.max_in_flight) among the tenants, of a tenant (outbox.max_in_flight_per_tenant) among its lanes.
 */
#ifndef OUTBOX_TURNS_H
#define OUTBOX_TURNS_H

#include "datatype/timestamp.h"

#include "slots.h"

typedef struct OutboxLane OutboxLane;
typedef struct OutboxParty OutboxParty;

/* The slots that a request takes, to be given back to where they came from. */
typedef struct OutboxGrant
{
	OutboxParty *party;
	bool		reserved;		/* of the server's reserve */
	bool		lane_reserved;	/* of the tenant's */
} OutboxGrant;

/* A lane joins its tenant, by its subscription, and leaves the one that it was in; or leaves for good. */
extern void outbox_turns_join(OutboxLane *lane);
extern void outbox_turns_leave(OutboxLane *lane);

/* A lane has something to send, or no longer. */
extern void outbox_turns_enlist(OutboxLane *lane);
extern void outbox_turns_delist(OutboxLane *lane);

/* The next lane that may send a request, no longer enlisted, and the slots for it; NULL: none may.  Would there be one? */
extern OutboxLane *outbox_turns_next(int max_in_flight, TimestampTz now, OutboxGrant *grant);
extern bool outbox_turns_wait(int max_in_flight);

/* The request has begun; it has ended. */
extern void outbox_turns_begin(OutboxLane *lane, const OutboxGrant *grant);
extern void outbox_turns_end(OutboxLane *lane, const OutboxGrant *grant);

/* Does it get answers? */
extern OutboxTrust outbox_turns_trust(const OutboxLane *lane, TimestampTz now);

#endif							/* OUTBOX_TURNS_H */
