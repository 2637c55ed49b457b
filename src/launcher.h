/*
 * The launcher: starts a delivery worker in every armed database, and restarts it when it ends.
 */
#ifndef OUTBOX_LAUNCHER_H
#define OUTBOX_LAUNCHER_H

/* At preload. */
extern void outbox_launcher_register(void);

/* Entry points of the background workers. */
extern PGDLLEXPORT void outbox_launcher_main(Datum main_arg);
extern PGDLLEXPORT void outbox_lister_main(Datum main_arg); /* main_arg: the OID of the database to connect to */

#endif							/* OUTBOX_LAUNCHER_H */
