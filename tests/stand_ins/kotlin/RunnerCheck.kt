import android.content.Context
import android.graphics.Bitmap
import kotlinx.coroutines.runBlocking
import org.lightningprune.AsyncRunner
import org.lightningprune.ProgramRunner
import org.lightningprune.logic.GrayImage
import org.lightningprune.logic.ModelException
import org.lightningprune.logic.Reading
import org.lightningprune.logic.Session

/** Loads what lies in the assets and runs it; prints what an app would show. */
fun main() {
    try {
        ProgramRunner.load(Context()).use { runner ->
            val image = GrayImage(8, 8, FloatArray(64) { if (it == 1) 3f else 0f })
            println(runner.classify(image).answer)
            val colors = IntArray(64) { if (it == 61) 0xffffff else 0 }
            val bitmap = Bitmap.createBitmap(colors, 8, 8, Bitmap.Config.ARGB_8888)
            println(runner.classify(bitmap, 180).answer)
            println(asynchronously(bitmap))
            println("${runner.benchmark(3).runs} runs")
            println(runner.session().use { stepped(it) })
            runner.run(listOf(FloatArray(64)), listOf(listOf(2, 1, 8, 8)))
        }
    } catch (error: ModelException) {
        println("message: ${error.message}")
    }
}

/** What a session gives before and after a reset. */
fun stepped(session: Session): String {
    val first = session.step(listOf(FloatArray(64) { 1f }))[0]
    session.reset()
    return "steps of ${first.size} and ${session.step(listOf(FloatArray(64)))[0].size} values"
}

/** What the asynchronous runner reads, and whether it kept away from the caller's thread. */
fun asynchronously(bitmap: Bitmap): String = AsyncRunner(Context()).use { runner ->
    runBlocking {
        val away = runner.ask { Thread.currentThread() } != Thread.currentThread()
        val reading = runner.read(bitmap, 180).reading as Reading.Classes
        "${reading.answer} on a thread of its own: $away"
    }
}
