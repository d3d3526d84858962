// Where conversations are kept: this browser's IndexedDB, which unlike localStorage holds the tokens of long ones. Nothing leaves it but what is
// exported.
import type { Conversation } from "./tree";

export interface Store {
  all(): Promise<Conversation[]>;
  put(c: Conversation): Promise<void>;
  remove(id: string): Promise<void>;
  readonly kept: boolean;
}

const done = <T>(request: IDBRequest<T>): Promise<T> =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

class Kept implements Store {
  readonly kept = true;
  constructor(private readonly db: IDBDatabase) {}
  private table = (mode: IDBTransactionMode): IDBObjectStore => this.db.transaction("conversations", mode).objectStore("conversations");
  all = (): Promise<Conversation[]> => done(this.table("readonly").getAll());
  put = async (c: Conversation): Promise<void> => void (await done(this.table("readwrite").put(c)));
  remove = async (id: string): Promise<void> => void (await done(this.table("readwrite").delete(id)));
}

/** Where a browser keeps nothing (some private windows): until the tab is closed, which the page then says. */
class Forgetful implements Store {
  readonly kept = false;
  private readonly them = new Map<string, Conversation>();
  all = async (): Promise<Conversation[]> => [...this.them.values()];
  put = async (c: Conversation): Promise<void> => void this.them.set(c.id, c);
  remove = async (id: string): Promise<void> => void this.them.delete(id);
}

export async function openStore(): Promise<Store> {
  try {
    const opening = indexedDB.open("pellucid", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("conversations", { keyPath: "id" });
    return new Kept(await done(opening));
  } catch {
    return new Forgetful();
  }
}

/** Small things, such as the theme: absent where the browser keeps nothing. */
export const recall = (name: string): string | null => {
  try {
    return localStorage.getItem(`pellucid.${name}`);
  } catch {
    return null;
  }
};

export const remember = (name: string, value: string): void => {
  try {
    localStorage.setItem(`pellucid.${name}`, value);
  } catch {
    // kept until the tab is closed, as the page says of conversations
  }
};
