/*
 * Status: what the worker says of each subscription to whoever asks, through shared memory.
 */
#ifndef OUTBOX_STATUS_H
#define OUTBOX_STATUS_H

#include "lane.h"

/* The state of all lanes; now and then. */
extern void outbox_status_publish(OutboxDatabase *database);

/* At once: until when the breaker of a lane is open; how a request ended. */
extern void outbox_status_breaker(OutboxDatabase *database, OutboxLane *lane);
extern void outbox_status_exchange(OutboxDatabase *database, OutboxLane *lane, const OutboxExchange *exchange, TimestampTz now);

#endif							/* OUTBOX_STATUS_H */
