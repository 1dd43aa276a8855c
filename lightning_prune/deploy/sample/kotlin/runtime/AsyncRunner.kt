package org.lightningprune

import android.content.Context
import android.graphics.Bitmap
import java.io.Closeable
import java.util.concurrent.Executors
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.withContext
import org.lightningprune.logic.GrayImage
import org.lightningprune.logic.ModelException

/**
 * A [ProgramRunner] for screens: it loads and runs on a thread of its own, never on the caller's, one call after the other.
 *
 * The program is loaded at the first call. Each call throws what [ProgramRunner] throws, [ModelException].
 */
class AsyncRunner(context: Context, private val name: String = "model", private val threads: Int = 1) : Closeable {
    private val context = context.applicationContext
    private val thread = Executors.newSingleThreadExecutor()
    private val dispatcher = thread.asCoroutineDispatcher()
    private var runner: ProgramRunner? = null

    /** Do [work] with the runner on its thread, and return to the caller's. */
    suspend fun <T> ask(work: (ProgramRunner) -> T): T = withContext(dispatcher) {
        work(runner ?: ProgramRunner.load(context, name, threads).also { runner = it })
    }

    suspend fun classify(image: GrayImage): Classified = ask { it.classify(image) }

    suspend fun classify(bitmap: Bitmap, rotation: Int = 0): Classified = ask { it.classify(bitmap, rotation) }

    suspend fun read(bitmap: Bitmap, rotation: Int = 0): Read = ask { it.read(bitmap, rotation) }

    /** Ends after the call under way. */
    override fun close() {
        thread.execute { runner?.close() }
        thread.shutdown()
    }
}
