/*
 * Sending: requests made from items, and what became of them.
 */
#ifndef OUTBOX_SENDER_H
#define OUTBOX_SENDER_H

#include "datatype/timestamp.h"

extern void outbox_sender_start(void);

/* The descriptor that wakes the loop for network events, and the milliseconds until there is something to do anyway (-1: no timer). */
extern int	outbox_sender_descriptor(void);
extern long outbox_sender_timeout(void);

/* Network events, outcomes, and new requests in the places that became free. True: nothing happened. */
extern bool outbox_sender_step(TimestampTz now);

/* Is there something to send, and a place for it? */
extern bool outbox_sender_can_send(void);

#endif							/* OUTBOX_SENDER_H */
