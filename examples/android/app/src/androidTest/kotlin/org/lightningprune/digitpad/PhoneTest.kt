package org.lightningprune.digitpad

import android.graphics.Bitmap
import android.os.SystemClock
import android.view.MotionEvent
import android.widget.TextView
import androidx.test.core.app.ActivityScenario
import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNotEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.lightningprune.AsyncRunner
import org.lightningprune.logic.GrayImage

/** On a phone or an emulator: the bundle's program in ExecuTorch, and the pad. `gradle :app:connectedAndroidTest` */
@RunWith(AndroidJUnit4::class)
class PhoneTest {
    private fun runner() = AsyncRunner(InstrumentationRegistry.getInstrumentation().targetContext)

    @Test
    fun theProgramRunsAwayFromTheCaller() = runner().use { runner ->
        runBlocking {
            val (answer, milliseconds) = runner.classify(GrayImage(8, 8))
            assertTrue("confidence ${answer.confidence}", answer.confidence in 0f..1f)
            assertTrue("$milliseconds ms", milliseconds > 0)
            assertEquals(3, runner.ask { it.benchmark(3) }.runs)
            assertNotEquals(Thread.currentThread(), runner.ask { Thread.currentThread() })
        }
    }

    @Test
    fun aTurnedBitmapIsReadAsTheUprightOne() = runner().use { runner ->
        val upright = IntArray(12 * 8) { if (it / 8 in 2..9 && it % 8 in 3..4) 0xffffffff.toInt() else 0xff000000.toInt() }
        // the same picture, lying on its left side: 90 degrees clockwise turn it upright
        val lying = IntArray(8 * 12) { upright[it % 12 * 8 + 7 - it / 12] }
        val answers = listOf(Pair(bitmap(upright, 8, 12), 0), Pair(bitmap(lying, 12, 8), 90)).map { (bitmap, rotation) ->
            runBlocking { runner.classify(bitmap, rotation) }.answer
        }
        assertEquals(answers[0], answers[1])
    }

    @Test
    fun aStrokeOnThePadIsClassified() {
        ActivityScenario.launch(MainActivity::class.java).use { scenario ->
            scenario.onActivity { activity ->
                val pad = activity.findViewById<PadView>(android.R.id.input)
                for ((action, y) in listOf(
                    Pair(MotionEvent.ACTION_DOWN, 0.2f), Pair(MotionEvent.ACTION_MOVE, 0.8f), Pair(MotionEvent.ACTION_UP, 0.8f)
                )) {
                    val now = SystemClock.uptimeMillis()
                    pad.onTouchEvent(MotionEvent.obtain(now, now, action, pad.width / 2f, y * pad.height, 0))
                }
            }
            var shown = ""
            for (attempt in 0 until 100) {
                scenario.onActivity { shown = it.findViewById<TextView>(android.R.id.text1).text.toString() }
                if (shown.isNotEmpty()) break
                Thread.sleep(100)
            }
            assertTrue(shown, shown.endsWith(" ms"))
        }
    }

    private fun bitmap(colors: IntArray, width: Int, height: Int): Bitmap =
        Bitmap.createBitmap(colors, width, height, Bitmap.Config.ARGB_8888)
}
