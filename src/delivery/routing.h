/*
 * Routing: which lanes may want an event.
 */
#ifndef OUTBOX_ROUTING_H
#define OUTBOX_ROUTING_H

#include "lane.h"

/* Subscriptions came, went, or changed what they match. */
extern void outbox_routing_index(List *lanes);

/* Does anybody look at the bodies of events? */
extern bool outbox_routing_needs_bodies(void);

/*
 * Visits each lane that may want this event of a chunk, once; those that are left out do not want it.  What the visited ones want, outbox_subscription_wants() says.
 * visit: must not change what is indexed, nor raise.
 */
extern void outbox_routing_visit(OutboxChunk *chunk, int index, void (*visit) (OutboxLane *lane, OutboxChunk *chunk, int index));

#endif							/* OUTBOX_ROUTING_H */
