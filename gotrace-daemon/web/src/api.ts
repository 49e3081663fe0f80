// Asks the API. Addresses are relative, so that the page works behind a proxy's path too.

/** How often is asked again where another request is in the way. */
const AGAIN = 10;

/** An answer that is none; `status` 0: nobody answers. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export async function ask(path: string, signal?: AbortSignal): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, { signal: signal ?? null, cache: "no-store" });
    // One at a time reads a process: who comes meanwhile is to come again.
    for (let n = 0; response.status === 429 && n < AGAIN; n++) {
      await new Promise((resolve) => setTimeout(resolve, 1000));
      response = await fetch(path, { signal: signal ?? null, cache: "no-store" });
    }
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "gotrace does not answer");
  }
  if (!response.ok) throw new ApiError(response.status, (await response.text()).trim() || `status ${response.status}`);
  return response;
}

export async function askJson<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await ask(path, signal)).json() as Promise<T>;
}

/** JSON, one object a line. */
export async function askLines(path: string, signal?: AbortSignal): Promise<Record<string, unknown>[]> {
  const text = await (await ask(path, signal)).text();
  return text.split("\n").filter(Boolean).map((line) => JSON.parse(line) as Record<string, unknown>);
}

/** Has the browser keep what stands for the token. Whether it is the right one. */
export async function login(token: string): Promise<boolean> {
  const response = await fetch("login", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
  if (response.ok) return true;
  if (response.status === 401) return false;
  throw new ApiError(response.status, (await response.text()).trim());
}
