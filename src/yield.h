/*
 * Giving way: delivery workers leave a database for the commands that need it to themselves.
 */
#ifndef OUTBOX_YIELD_H
#define OUTBOX_YIELD_H

/* At preload: chains the utility hook. */
extern void outbox_yield_install(void);

#endif							/* OUTBOX_YIELD_H */
